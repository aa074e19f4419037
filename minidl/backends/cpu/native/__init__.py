"""Native programs: a trace's tasks as LLVM code for its exact shapes, compiled by llvmlite, run by one call.

target     what the processor has: vector length, registers, FMA
emitter    text of LLVM functions: loops, vectors, variables
compiler   from text to machine code in memory, and the cache of compiled objects on disk
driver     phases, chunks and their hand-over between threads
program    a plan bound to memory
"""
