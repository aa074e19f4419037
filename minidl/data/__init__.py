"""Floor 5: data. Digits to learn from, datastores, mini-batches, one-hot labels."""

from minidl.data.datastore import (
    arrayDatastore,
    combine,
    hasdata,
    numpartitions,
    partition,
    preview,
    read,
    readall,
    reset,
    shuffle,
    subset,
    transform,
)
from minidl.data.digits import digitTest4DArrayData, digitTrain4DArrayData
from minidl.data.minibatchqueue import EndOfDataError, minibatchqueue
from minidl.data.onehot import categories, onehotdecode, onehotencode

__all__ = [
    "EndOfDataError",
    "arrayDatastore",
    "categories",
    "combine",
    "digitTest4DArrayData",
    "digitTrain4DArrayData",
    "hasdata",
    "minibatchqueue",
    "numpartitions",
    "onehotdecode",
    "onehotencode",
    "partition",
    "preview",
    "read",
    "readall",
    "reset",
    "shuffle",
    "subset",
    "transform",
]
