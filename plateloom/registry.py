"""Methods by name: each package keeps a plain dict `name -> module`, and nothing is imported before it is asked for."""

import importlib

from plateloom.errors import UnknownMethodError


def load_method(methods, name, kind):
    """Import the module of a registered method.

    Parameters
    ----------
    methods : dict of str to str
        Method name to the dotted name of its module, e.g. ``{"watershed": "plateloom.segmentation.watershed"}``.
    name : str
        The method asked for.
    kind : str
        What the methods are, for the message: ``"segmentation method"``.

    Returns
    -------
    module

    Raises
    ------
    UnknownMethodError
        If no such method is registered; names the nearest one.
    """
    if name not in methods:
        raise UnknownMethodError(kind, name, methods)
    return importlib.import_module(methods[name])
