"""What trainings of networks on crops have in common: arithmetic that can be repeated, and states to go on from."""

import contextlib

import torch


@contextlib.contextmanager
def exact():
    """Compute in full float32 and repeatable algorithms on a GPU; nothing changes on a CPU."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def copy_tensor(tensor):
    """A copy on the CPU that later training does not change."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def copy_tensors(model):
    """Copies of all tensors of a network, by name."""
    return {name: copy_tensor(value) for name, value in model.state_dict().items()}


def optimizer_state(model, optimizer):
    """What an optimizer has gathered, as flat tensors on the CPU: ``optimizer.{parameter}.{kind}``."""
    return {
        f"optimizer.{name}.{kind}": copy_tensor(torch.as_tensor(value))
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(state, model, optimizer):
    """Put back what `optimizer_state` gave, moments to where their parameter is; steps stay on the CPU."""
    for name, parameter in model.named_parameters():
        own = below(state, f"optimizer.{name}.")
        if own:
            optimizer.state[parameter] = {
                kind: value if kind == "step" else value.to(parameter.device) for kind, value in own.items()
            }


def below(tensors, start):
    """Copies of the tensors whose names begin so, by the rest of their names."""
    return {name[len(start) :]: value.clone() for name, value in tensors.items() if name.startswith(start)}
