"""Started by torchrun: trains a small run on the data and into the folder given, and says how many processes did."""

import sys

import torch.distributed
from torch import nn

from sdediff.config import Config
from sdediff.networks import UNet
from sdediff.training import train


class ToldUNet(nn.Module):
    """A U-Net of one's own that is told the class of each image by a shift of its grey."""

    def __init__(self, shape, classes: int, width: int = 8, outputs: int = 1):
        super().__init__()
        self.shift, self.unet = nn.Embedding(classes + 1, 1), UNet(shape, width=width, outputs=outputs)

    def forward(self, x, conditioning, label):
        return self.unet(x + self.shift(label)[:, :, None, None], conditioning)


def main(config, folder, *options):
    network = None if "library" in options else ToldUNet
    result = train(Config.load(config), folder, network=network, progress=False, resume="resume" in options)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        print(f"processes={world} steps={result.steps}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
