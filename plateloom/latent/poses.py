"""How a crop is turned and mirrored: the symmetries of the square, any angle, and the pose in which two crops agree."""

import math

import numpy as np
import torch

ANGLES = 16  # looked at for the best pose, each also mirrored: none is further away than 11.25°
COARSE_PX = 16  # side at which poses are compared


def turn_crops(crops, turns):
    """Flip and rotate each crop by its own one of the eight symmetries of the square.

    Parameters
    ----------
    crops : Tensor, shape (N, C, H, H)
    turns : array of int, shape (N,)
        Quarter turns (0 to 3), plus 4 for a flip; 0 leaves a crop as it is.

    Returns
    -------
    Tensor, shape (N, C, H, H)
    """
    turned = crops.clone()
    for turn in np.unique(turns):
        if turn == 0:
            continue
        chosen = torch.as_tensor(np.flatnonzero(turns == turn), device=crops.device)
        turned[chosen] = turn_alike(crops[chosen], int(turn))
    return turned


def turn_alike(crops, turn):
    """Flip and rotate all crops by the same of the eight symmetries of the square; see `turn_crops`."""
    part = torch.rot90(crops, turn % 4, dims=(2, 3)) if turn % 4 else crops
    return part.flip(3) if turn >= 4 else part


def rotate_crops(crops, angles, mirrored):
    """Mirror and rotate each crop by its own angle about its center, interpolating linearly.

    Parameters
    ----------
    crops : Tensor of float32, shape (N, C, H, H)
    angles : array of float, shape (N,)
        [rad]
    mirrored : array of bool, shape (N,)

    Returns
    -------
    Tensor of float32, shape (N, C, H, H)
        What comes from outside the crop is 0; within the largest circle there is nothing of it.
    """
    angles = torch.as_tensor(angles, dtype=torch.float32, device=crops.device)
    sign = 1 - 2 * torch.as_tensor(mirrored, dtype=torch.float32, device=crops.device)
    cos, sin, zero = torch.cos(angles), torch.sin(angles), torch.zeros_like(angles)
    matrix = torch.stack([torch.stack([sign * cos, -sign * sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = torch.nn.functional.affine_grid(matrix, list(crops.shape), align_corners=False)
    return torch.nn.functional.grid_sample(crops, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def best_poses(moving, fixed):
    """Find how each crop must be mirrored and rotated to be nearest to its partner.

    Parameters
    ----------
    moving, fixed : Tensor of float32, shape (N, C, H, H)
        Compared at `COARSE_PX`, within the largest circle.

    Returns
    -------
    angles : Tensor of float32, shape (N,)
        [rad], one of `ANGLES`; for `rotate_crops`.
    mirrored : Tensor of bool, shape (N,)
    """
    with torch.no_grad():
        moving, fixed = (
            torch.nn.functional.adaptive_avg_pool2d(crops, min(COARSE_PX, crops.shape[-1])) for crops in (moving, fixed)
        )
        inside = circle(fixed.shape[-1]).to(fixed.device)
        number = len(moving)
        distances = []
        for pose in range(2 * ANGLES):
            angles = torch.full((number,), 2 * math.pi * (pose % ANGLES) / ANGLES)
            turned = rotate_crops(moving, angles, torch.full((number,), pose >= ANGLES))
            distances.append((((turned - fixed) * inside) ** 2).sum(dim=(1, 2, 3)))
        best = torch.stack(distances).argmin(dim=0)
    return 2 * math.pi * (best % ANGLES) / ANGLES, best >= ANGLES


def circle(side):
    """Mark the pixels within the largest circle of a square: what no rotation takes out of it.

    Returns
    -------
    Tensor of float32, shape (side, side)
        1 inside, 0 outside.
    """
    place = torch.arange(side) - (side - 1) / 2
    return (place[:, None] ** 2 + place**2 <= ((side - 1) / 2) ** 2).float()
