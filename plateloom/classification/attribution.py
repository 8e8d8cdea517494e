"""Which pixels a network goes by, and whether the maps that claim to show it depend on what the network has learned at all."""

import copy

import numpy as np

STEPS = 32  # of the integral
MOST_CELLS = 48
EXAMPLES = 8
METHODS = ("integrated gradients", "Grad-CAM")


def explain_network(X, y, groups, *, pipelines, folds, seed=0):
    """Map which pixels decided for the class of held-out cells, and test these maps by networks with random weights.

    Parameters
    ----------
    X : array of float, shape (N, C, H, W)
        Crops of the labeled cells.
    y, groups : array of str, shape (N,)
        As for `plateloom.classification.evaluation.evaluate`.
    pipelines, folds
        What that kept of its folds, and its rows of them. The network of the first fold is explained on cells that it has not
        seen.
    seed : int

    Returns
    -------
    found : dict
        Plain numbers (JSON): `cells`; `gap`: the most that the attributions of a cell fail to sum to what they explain, as a share of it;
        `randomized`: rows of `layers` (how many, from the last on, have random weights) and per method of `METHODS` the mean rank
        correlation of the maps with those of the trained network; `agreement`: per method the same with the network of another
        fold, which has learned from these cells (None with one fold). None where a map says nothing.
    pictures : dict of str to ndarray
        `examples` (rows of X), `crops` as the network sees them, shape (M, C, H, W), and maps, shape (M, H, W): `gradients` (positive: for
        the class, negative: against it), `gradients_randomized`, `cam`, `cam_randomized`.

    Notes
    -----
    What is explained is the logit of the predicted class over the mean of all logits. Baseline of the integrated gradients
    (Sundararajan, Taly and Yan 2017, arXiv:1703.01365) is a black crop. Weights are randomized layer by layer from the output on
    (Adebayo et al. 2018, arXiv:1810.03292): a map that hardly changes shows the picture, not what was learned from it. How much a channel
    matters is not read from these maps: a channel that tells nothing has as strong ones, of both signs. Shuffling tells
    (`plateloom.classification.explanation.permute_families`).
    """
    estimator = pipelines[0]["estimator"]
    random = np.random.default_rng(seed)
    held = random.permutation(np.flatnonzero(np.isin(groups, folds[0]["groups"])))
    turn = np.array([(y[held[:i]] == y[row]).sum() for i, row in enumerate(held)])
    rows = held[np.argsort(turn, kind="stable")][:MOST_CELLS]  # one of each class in turn
    targets = estimator.predict_proba(X[rows]).argmax(axis=1)
    crops = estimator.prepare(X[rows])
    network = estimator.network_.to(crops.device)
    maps, gaps = _maps(network, crops, targets)
    broken, rated = copy.deepcopy(network), []
    for number, layer in enumerate(broken.layers(), 1):
        _randomize(broken, layer, seed + number)
        others, _ = _maps(broken, crops, targets)
        rated.append({"layers": number} | _agreement(maps, others))
    agreement = dict.fromkeys(METHODS)
    if len(pipelines) > 1:
        other = pipelines[1]["estimator"]
        seen = other.prepare(X[rows])  # in its own range of intensities
        agreement = _agreement(maps, _maps(other.network_.to(seen.device), seen, targets)[0])
    found = {
        "cells": len(rows),
        "gap": float(gaps.max()),
        "randomized": rated,
        "agreement": agreement,
    }
    shown = slice(0, EXAMPLES)
    pictures = {
        "examples": rows[shown],
        "crops": crops[shown].cpu().numpy(),
        "gradients": maps["integrated gradients"][shown],
        "gradients_randomized": others["integrated gradients"][shown],
        "cam": maps["Grad-CAM"][shown],
        "cam_randomized": others["Grad-CAM"][shown],
    }
    return found, pictures


def integrated_gradients(network, crops, targets, *, steps=STEPS):
    """Attribute what decided for a class to pixels, along the way from a black crop.

    Parameters
    ----------
    network : torch.nn.Module
        Crops to logits.
    crops : Tensor of float32, shape (N, C, H, W)
    targets : array of int, shape (N,)
        Classes.
    steps : int
        Points of the integral.

    Returns
    -------
    attributions : ndarray of float32, shape (N, C, H, W)
    gaps : ndarray of float64, shape (N,)
        How far their sum is from the difference that they explain, as a share of it.
    """
    import torch
    from captum.attr import IntegratedGradients

    decide, black = _Decision(network), torch.zeros_like(crops)
    goals = torch.as_tensor(targets, device=crops.device)
    method = IntegratedGradients(decide, multiply_by_inputs=True)
    found = method.attribute(crops, black, target=goals, n_steps=steps, internal_batch_size=max(steps, 256))
    with torch.no_grad():
        explained = (decide(crops) - decide(black)).gather(1, goals[:, None])[:, 0].double()
    gaps = (found.double().sum(dim=(1, 2, 3)) - explained).abs() / explained.abs().clamp(min=1e-6)
    return found.detach().cpu().float().numpy(), gaps.cpu().numpy()


def grad_cam(network, crops, targets):
    """Weigh the maps of the last convolution by their gradients (Selvaraju et al. 2017, arXiv:1610.02391).

    Parameters
    ----------
    network, crops, targets
        As for `integrated_gradients`.

    Returns
    -------
    ndarray of float32, shape (N, H, W)
        What speaks for the class, from 0 on; coarse.
    """
    import torch
    from captum.attr import LayerAttribution, LayerGradCam

    method = LayerGradCam(_Decision(network), network.convolutions[-2])
    goals = torch.as_tensor(targets, device=crops.device)
    found = method.attribute(crops, target=goals, relu_attributions=True)
    found = LayerAttribution.interpolate(found.detach(), tuple(crops.shape[2:]), "bilinear")
    return found[:, 0].cpu().float().numpy()


def rank_correlation(one, other):
    """Compare maps by the order of their pixels.

    Parameters
    ----------
    one, other : array of float, shape (N, H, W)
        Signs count for nothing.

    Returns
    -------
    float or None
        Mean of Spearman's correlations of the pairs; None if every pair has a map that is the same everywhere.
    """
    from scipy.stats import rankdata

    found = []
    for pair in zip(np.abs(one), np.abs(other), strict=True):
        first, second = (rankdata(np.round(values / max(values.max(), 1e-30), 6)) for values in pair)
        if np.ptp(first) and np.ptp(second):
            found.append(np.corrcoef(first, second)[0, 1])
    return float(np.mean(found)) if found else None


def _Decision(network):
    """A module that gives the logits over their mean: what is added to all classes decides nothing."""
    from torch import nn

    class Decision(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, crops):
            logits = self.network(crops)
            return logits - logits.mean(dim=1, keepdim=True)

    return Decision()


def _maps(network, crops, targets):
    """Maps of both methods by name, and the gaps of the integrated gradients."""
    gradients, gaps = integrated_gradients(network, crops, targets)
    return {"integrated gradients": gradients.sum(axis=1), "Grad-CAM": grad_cam(network, crops, targets)}, gaps


def _agreement(maps, others):
    return {name: rank_correlation(maps[name], others[name]) for name in METHODS}


def _randomize(network, layer, seed):
    """Give a layer weights of chance, the same on every device."""
    import torch

    fresh = copy.deepcopy(layer).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.initialize(fresh)
    with torch.no_grad():
        layer.weight.copy_(fresh.weight)
        layer.bias.copy_(fresh.bias)
