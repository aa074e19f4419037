// Moving elements whatever their type: as words of BYTES bytes. Rows are cut into the widest words that they, and the
// addresses of the arrays, are whole multiples of (words_of in elements.py).
#pragma once
#include "portable.h"

#if BYTES == 16
struct __align__(16) Word { u64 low, high; };
DEVICE Word word_of(i64 bits) { return Word{(u64)bits, (u64)bits}; }
#elif BYTES == 8
typedef u64 Word;
DEVICE Word word_of(i64 bits) { return (Word)bits; }
#elif BYTES == 4
typedef unsigned Word;
DEVICE Word word_of(i64 bits) { return (Word)bits; }
#elif BYTES == 2
typedef unsigned short Word;
DEVICE Word word_of(i64 bits) { return (Word)bits; }
#else
typedef unsigned char Word;
DEVICE Word word_of(i64 bits) { return (Word)bits; }
#endif
