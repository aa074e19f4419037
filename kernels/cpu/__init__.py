"""CPU kernels, compiled by Numba. Nothing is imported here: import the module you need, and pay for no other.

kept        Numba's compilers, their code kept on disk where nobody else can write it
threads     ranged, parallel_for: loops over a range on all cores
scalars     what generated loops are written in
vector      blocks of SIMD vectors as values in Numba code
conv        conv, conv_input_grad, conv_weight_grad
batchnorm   batchnorm, batchnorm_grad

Arrays are C-contiguous, of one dtype (float32 or float64), channels last; they need not be aligned, but are faster when
they start at multiples of 64 bytes. NaN and infinity pass through as in NumPy. Results do not depend on the number of
threads.
"""
