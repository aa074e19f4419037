"""dlaccelerate: record a function once per input signature, compile the recording, replay it.

    function    AcceleratedFunction: when to record, when to replay
    cache       traces by signature
    signature   what two calls must have in common, as a key and as a compiled check
    recording   one run, kept as a graph; a trace: its program
    captures    what a function reaches besides its arguments
    effects     what it does besides computing
    audits      whether a recording still holds
    checks      a replay against the function itself; where NaN came from
    report      what happened and why, as data that prints itself
    advice      what the user is told
"""

from minidl.accelerate.function import AcceleratedFunction, clearCache, dlaccelerate

__all__ = ["AcceleratedFunction", "clearCache", "dlaccelerate"]
