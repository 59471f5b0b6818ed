"""Started by torchrun: trains a small run on the data and into the folder given, and says how many processes did."""

import sys

import torch.distributed

from sdediff.config import Config
from sdediff.training import train


def main(config, folder):
    result = train(Config.load(config), folder, progress=False)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        print(f"processes={world} steps={result.steps}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
