"""Methods by name: each package keeps a plain dict `name -> module`, and nothing is imported before it is asked for."""

import importlib
import logging

from plateloom.errors import UnknownMethodError

log = logging.getLogger(__name__)


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


def log_notices(module, params):
    """Log as warnings what a person must know before using a method: its ``notices(params)``, if it has any.

    Parameters
    ----------
    module : module
    params : Params
        Of that method.
    """
    for notice in module.notices(params) if hasattr(module, "notices") else ():
        log.warning("%s", notice)
