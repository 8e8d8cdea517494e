"""Which device a network computes on."""


def choose_device(policy):
    """The device to compute on.

    Parameters
    ----------
    policy : {'require', 'prefer', 'cpu'}

    Returns
    -------
    str
        "cuda" or "cpu".

    Raises
    ------
    RuntimeError
        If a GPU is required and there is none.
    """
    import torch

    if policy != "cpu" and torch.cuda.is_available():
        return "cuda"
    if policy == "require":
        raise RuntimeError("engine.device is `require`, but torch sees no GPU here")
    return "cpu"
