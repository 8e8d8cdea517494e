"""Other people's segmentation networks with models made here; each runs in an environment of its own (`make cellpose` …)."""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

PIXEL_UM = 0.5
CHANNELS = ["ER", "DNA"]
SHAPE = (540, 660)  # more than one block
DIAMETER_PX = 22


def draw(seed=0, shape=SHAPE):
    """Bright discs, nuclei in larger cells: image (2, Y, X) and the number of them."""
    import numpy as np

    random = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    image, centers = np.zeros((2, *shape), np.float32), []
    for row in range(24, shape[0] - 20, 60):
        for column in range(24, shape[1] - 20, 60):
            cy, cx = row + random.uniform(-4, 4), column + random.uniform(-4, 4)
            distance = np.hypot(y - cy, x - cx)
            image[1] += np.clip(1 - (distance / (DIAMETER_PX / 2)) ** 4, 0, 1)
            image[0] += np.clip(1 - (distance / 20) ** 4, 0, 1)
            centers.append((round(cy), round(cx)))
    image = 0.02 + 0.2 * image + random.normal(0, 0.002, image.shape)
    return image.astype(np.float32), centers


def make_cellpose(folder):
    """A file that cellpose's own loader takes, for a network that follows the image's gradient instead of a trained one.

    Cellpose 4 knows one network, of 305 million parameters. Its trunk is taken from a registry of another package: there
    a trunk of few parameters is put in its place. Loading, cutting, flows and masks are cellpose's.
    """
    import torch

    if not torch.version.cuda:
        # torchvision's operators, which nothing here uses, are built for CUDA only; cellpose imports their names.
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        make_cellpose.library = library
    from segment_anything import sam_model_registry

    class Gradient(torch.nn.Module):
        """Flows that climb to the centers of what is bright."""

        def forward(self, tokens):
            image = torch.nn.functional.pixel_shuffle(tokens.permute(0, 3, 1, 2).float(), 8)[:, :1]
            width = 15
            kernel = torch.exp(-(torch.arange(-width, width + 1).float() ** 2) / (2 * 5.0**2))
            kernel = kernel / kernel.sum()
            smooth = torch.nn.functional.conv2d(image, kernel.view(1, 1, -1, 1), padding=(width, 0))
            smooth = torch.nn.functional.conv2d(smooth, kernel.view(1, 1, 1, -1), padding=(0, width))
            down, right = torch.gradient(smooth, dim=(2, 3))
            length = torch.sqrt(down**2 + right**2) + 1e-6
            maps = torch.cat([5 * down / length, 5 * right / length, 20 * (image - 0.4)], 1)
            return torch.nn.functional.pixel_unshuffle(maps, 8).permute(0, 2, 3, 1).to(tokens.dtype)

    class Trunk(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = torch.nn.Module()
            self.patch_embed.proj = torch.nn.Conv2d(3, 64, 16, 16)
            self.pos_embed = torch.nn.Parameter(torch.zeros(1, 64, 64, 64))
            self.blocks = torch.nn.ModuleList([Gradient()])
            self.neck = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Conv2d(192, 192, 1), torch.nn.Identity())

    def build(checkpoint):
        whole = torch.nn.Module()
        whole.image_encoder = Trunk()
        return whole

    sam_model_registry["vit_l"] = build
    from cellpose.vit import CPSAM

    network = CPSAM()
    with torch.no_grad():
        weight = torch.zeros(64, 3, 8, 8)
        for i in range(64):
            weight[i, 0, i // 8, i % 8] = 1  # a token is the pixels of its square in the first channel
        network.encoder.patch_embed.proj.weight.data = weight
        network.encoder.patch_embed.proj.bias.zero_()
        for layer in (network.encoder.neck[1], network.out):
            layer.weight.copy_(torch.eye(192)[..., None, None])
            layer.bias.zero_()
    network.save_model(str(folder / "model"))
    return folder / "model"


def make_instanseg(folder):
    """A TorchScript model with InstanSeg's signature: bright connected pixels are an object."""
    import torch

    class Bright(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pixel_size, self.cells_and_nuclei = 1.0, True

        def forward(self, x: torch.Tensor, target_segmentation: torch.Tensor = torch.tensor([1, 1])) -> torch.Tensor:  # noqa: B008
            found = []
            for target in range(2):
                if int(target_segmentation[target]) > 0:
                    channel = x[:, :1] if target == 0 else x[:, x.shape[1] - 1 :]
                    mask = channel > 0.4
                    count = x.shape[2] * x.shape[3]
                    labels = torch.arange(1, count + 1).to(x.device).reshape(1, 1, x.shape[2], x.shape[3])
                    labels = torch.where(mask, labels, torch.zeros_like(labels)).to(torch.float64)
                    for _ in range(80):
                        labels = torch.nn.functional.max_pool2d(labels, 3, 1, 1) * mask
                    values = torch.unique(labels)
                    found.append(torch.searchsorted(values, labels).to(torch.float32))
            return torch.cat(found, 1)

    torch.jit.script(Bright()).save(str(folder / "instanseg.pt"))
    return folder / "instanseg.pt"


def make_stardist(folder):
    """A model of StarDist, trained for some seconds on discs like those that it is tested on."""
    import numpy as np
    import tensorflow
    from scipy import ndimage
    from stardist.models import Config2D, StarDist2D

    tensorflow.keras.utils.set_random_seed(0)
    config = Config2D(
        n_rays=8, grid=(2, 2), n_channel_in=1, unet_n_depth=2, unet_n_filter_base=8, net_conv_after_unet=16,
        train_patch_size=(128, 128), train_batch_size=4, train_epochs=30, train_steps_per_epoch=8, train_tensorboard=False,
        train_learning_rate=3e-3, use_gpu=False,
    )  # fmt: skip
    pairs = []
    for seed in range(1, 5):
        image, _ = draw(seed)
        low, high = np.percentile(image[1], (1, 99.8))
        pairs.append(((image[1] - low) / (high - low), ndimage.label(image[1] > 0.1)[0]))
    images, labels = zip(*pairs, strict=True)
    model = StarDist2D(config, name="model", basedir=str(folder))
    model.train(images, labels, validation_data=(images[:1], labels[:1]))
    (folder / "model/thresholds.json").write_text(json.dumps({"prob": 0.4, "nms": 0.3}))
    return folder / "model"


def main(name, folder, device="cpu"):
    """Segment a drawn image whole and in tiles; print what was found as JSON."""
    import pickle
    import time
    import warnings

    import numpy as np

    warnings.simplefilter("ignore")
    weights = str({"cellpose": make_cellpose, "instanseg": make_instanseg, "stardist": make_stardist}[name](folder))
    from plateloom.registry import load_method
    from plateloom.segmentation import METHODS, make_method, segment_image

    module = load_method(METHODS, name, "segmentation method")
    image, centers = draw()
    common = {
        "nuclei_channel": "DNA",
        "cells_channel": "ER",
        "nucleus_diameter_um": DIAMETER_PX * PIXEL_UM,
        "nucleus_diameter_max_um": 15.0,
        "cell_diameter_um": 20.0,
        "cell_diameter_max_um": 25.0,
    }
    said = {"true": len(centers), "files": module.weights_files(module.Params(weights=weights, **common))}
    for title, more in (
        ("nuclei", {"weights": weights}),
        ("both", {"weights": weights, "cells_weights": weights}),
        ("cells", {"cells_weights": weights}),
    ):
        if name == "stardist" and title != "nuclei":
            continue  # the model that was trained knows nuclei only
        params = module.Params(**common, **more)
        given = {"method": name, "params": params, "pixel_size_um": PIXEL_UM, "device": device}
        begun = time.time()
        whole = segment_image(image, CHANNELS, **given)
        seconds = time.time() - begun
        tiled = segment_image(image, CHANNELS, tile_px=200, **given)
        nuclei, cells = whole["Nuclei"], whole["Cells"]
        said[title] = {
            "seconds": round(seconds, 2),
            "nuclei": int(nuclei.max()),
            "centers": len({int(nuclei[center]) for center in centers} - {0}),
            "cells": len(np.unique(cells)) - 1,
            "cell_px": int((cells > 0).sum()) // max(int(nuclei.max()), 1),
            "nucleus_px": int((nuclei > 0).sum()) // max(int(nuclei.max()), 1),
            "agree": bool((cells[nuclei > 0] == nuclei[nuclei > 0]).all()),
            "unlike_in_tiles": {part: int((tiled[part] != whole[part]).sum()) for part in whole},
            "empty": int(segment_image(np.full_like(image, 0.02), CHANNELS, **given)["Cells"].max()),
        }
    work = make_method(module, params, CHANNELS, pixel_size_um=PIXEL_UM, shape=SHAPE, device=device)
    said["pickled"] = len(pickle.dumps(work))
    broken = folder / "broken"
    broken.write_bytes(b"no model")
    try:
        segment_image(
            image,
            CHANNELS,
            method=name,
            params={**common, "weights": str(broken)},
            pixel_size_um=PIXEL_UM,
            device=device,
        )
    except Exception as error:
        said["broken"] = f"{type(error).__name__}: {error}"
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
