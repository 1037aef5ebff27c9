"""Times thin SVD and QR by numpy's LAPACK at the sizes of svd.rs, best of five: `python benches/lapack.py`."""

import time

import numpy as np

SVD = [(8, 8), (64, 64), (320, 320), (640, 640), (1280, 1280), (2048, 1280), (2560, 320)]
QR = [(8, 8), (64, 64), (320, 320), (1280, 1280), (2560, 320)]


def best(function, shape):
    a = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        function(a)
        times.append(time.perf_counter() - start)
    return f"{1e3 * min(times):.2f} ms"


for shape in SVD:
    print("svd", shape, best(lambda a: np.linalg.svd(a, full_matrices=False), shape))
for shape in QR:
    print("qr", shape, best(np.linalg.qr, shape))
