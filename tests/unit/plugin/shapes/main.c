// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * main STATIC: each shape with either target, many times, against what gcc
 * alone makes of it.  Static calls are expected to call target STATIC.  Prints
 * for each shape its name, the calls, the wrong results, and how many calls the
 * plugin's build sent through a thunk.
 */
#include <stdio.h>
#include <stdlib.h>

#include "shapes.h"

#define CALLS_EACH 1024

extern unsigned long thunk_calls;

static void check(const char *name, int set, word (*shape)(unsigned int, word),
		  word (*plain)(unsigned int, word))
{
	unsigned long before = thunk_calls;
	unsigned int errors = 0;

	for (word i = 0; i < CALLS_EACH; i++) {
		/* Either target with each of the arguments' low bits. */
		unsigned int which = set < 0 ? i / 8 % 2 : (unsigned int)set;
		word arg = i * 0x2545f4914f6cdd1dUL + i;

		errors += shape(which, arg) != plain(which, arg);
	}
	printf("%s %d %u %lu\n", name, CALLS_EACH, errors, thunk_calls - before);
}

int main(int argc, char **argv)
{
	int set = argc > 1 ? atoi(argv[1]) : 0;

#define CHECK(name, ...) check(#name, -1, shape_##name, plain_shape_##name);
#define CHECK_STATIC(name, ...) check(#name, set, shape_##name, plain_shape_##name);
	ALL(CHECK)
	STATICS(CHECK_STATIC)
	return 0;
}
