"""A program that damages data files and reads them: FORMAT SEED COUNT FOLDER. Started by test_damaged_files.py.

It limits its own memory and time, prints the number of each file before it is read, and what became of all at the end.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np

from minidl.core.errors import DataError
from minidl.data import digitTrain4DArrayData, hdf5

MEMORY = 1 << 29  # more than there was at the start
SECONDS = 10  # for one file
NAMES = ("XTrain", "labelsTrain", "anglesTrain")
LABELS = ["3", "10"]


def good(kind, file):
    """A whole data set of two images; what is damaged of it is returned."""
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    angles = np.array([[3.0], [-45.0]])
    if kind in ("idx", "gz"):
        name = "train-%s-idx%d-ubyte" + (".gz" if kind == "gz" else "")
        labels = file.parent / (name % ("labels", 1))
        pack = gzip.compress if kind == "gz" else bytes
        labels.write_bytes(pack(struct.pack(">II", 0x801, 2) + b"\3\4"))
        return file.parent / (name % ("images", 3)), struct.pack(">4I", 0x803, *images.shape) + images.tobytes()
    X = images.transpose(1, 2, 0).reshape(28, 28, 1, 2)
    if kind == "mat73":
        import h5py

        with h5py.File(file, "w", userblock_size=512) as f:
            f.create_dataset("XTrain", data=(X / 255).T, chunks=True, compression="gzip")
            f["anglesTrain"] = angles.T
            refs = np.empty((1, 2), h5py.ref_dtype)
            for i, text in enumerate(LABELS):
                codes = np.array([[ord(c)] for c in text], np.uint16)
                refs[0, i] = f.create_dataset(f"#refs#/{i}", data=codes).ref
            f.create_dataset("labelsTrain", data=refs, dtype=h5py.ref_dtype).attrs["MATLAB_class"] = b"cell"
        data = bytearray(file.read_bytes())
        data[:19] = b"MATLAB 7.3 MAT-file"
        return file, bytes(data)
    from scipy.io import savemat

    memory = io.BytesIO()
    labels = np.array(LABELS, dtype=object)[:, None]
    savemat(memory, dict(zip(NAMES, (X, labels, angles))), do_compression=False)
    return file, memory.getvalue()


def damaged(data, dice, start=0):
    """The bytes with one to four damages, mostly where the structure is."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 4])):
        at = start + int((len(data) - start) * dice.random() ** dice.choice([1, 3]))
        what = dice.randrange(7)
        if what == 0:
            for _ in range(dice.choice([1, 4, 16])):
                data[min(at + dice.randrange(16), len(data) - 1)] ^= 1 << dice.randrange(8)
        elif what == 1:
            number = dice.choice([0, 1, 2, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
            data[at // 4 * 4 : at // 4 * 4 + 4] = struct.pack(dice.choice("<>") + "I", number)
        elif what == 2:
            del data[at:]
        elif what == 3:
            data[at:at] = dice.randbytes(dice.choice([1, 4, 8, 100]))
        elif what == 4:
            del data[at : at + dice.choice([1, 4, 8, 100])]
        elif what == 5:
            data[at : at + 8] = dice.choice([b"\0", b"\xff"]) * 8
        else:
            data[at:at] = data[at : at + dice.choice([4, 8, 64])]
        if len(data) <= start:
            break
    return bytes(data)


def write(kind, file, data, dice):
    """A damaged file; what is packed is damaged before, or after it was packed."""
    if kind == "gz":
        data = damaged(gzip.compress(data), dice) if dice.random() < 0.5 else gzip.compress(damaged(data, dice))
    elif kind == "matz":
        elements, at = [], 128
        while at < len(data):
            stop = at + 8 + struct.unpack_from("<I", data, at + 4)[0]
            element = data[at:stop]
            packed = zlib.compress(damaged(element, dice) if dice.random() < 0.5 else element)
            elements.append(struct.pack("<II", 15, len(packed)) + packed)
            at = stop
        data = data[:128] + b"".join(elements)
        data = damaged(data, dice, 128) if dice.random() < 0.5 else data
    else:
        data = damaged(data, dice)
    file.write_bytes(data)


def in_a_fork(command, input, stdout, stderr, timeout):
    """What `subprocess.run` does for `hdf5`, without the start of a Python: the reader's own program, in a fork."""
    import os
    import signal

    child = os.fork()
    if child == 0:
        signal.alarm(5)
        os.dup2(stdout.fileno(), 1)
        sys.stdin = io.TextIOWrapper(io.BytesIO(input))
        sys.stdout = os.fdopen(1, "w", closefd=False)
        hdf5._serve()
        sys.stdout.flush()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), stderr=b"")


def limit():
    """Limit memory; where the system cannot do that, only time is."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    except (ImportError, OSError):
        pass


def main(kind, seed, count, folder):
    dice = random.Random(f"{kind} {seed}")
    file, data = good(kind, Path(folder) / "DigitsDataTrain.mat")
    if kind == "mat73":
        import h5py  # noqa: F401  before the forks

        hdf5.subprocess.run = in_a_fork
    file.write_bytes(data if kind != "gz" else gzip.compress(data))
    X, labels, angles = digitTrain4DArrayData(Path=folder)
    assert X.shape == (28, 28, 1, 2) and angles.shape == (2, 1), "the file is good before it is damaged"
    assert kind in ("idx", "gz") or labels.tolist() == LABELS
    limit()
    read = refused = 0
    for number in range(count):
        print(number, end=" ", flush=True)
        file.unlink()
        write(kind, file, data, dice)
        try:
            X, labels, angles = digitTrain4DArrayData(Path=folder)
        except DataError as error:
            assert len(str(error)) < 2000
            refused += 1
            continue
        read += 1
        n = len(labels)
        assert X.shape == (28, 28, 1, n) and angles.shape == (n, 1) and labels.dtype.kind == "U" and n
        assert np.isfinite(X).all() and np.isfinite(angles).all()
    print(f"\n{read} read, {refused} refused")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
