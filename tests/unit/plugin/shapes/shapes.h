/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every shape of an indirect call.  shapes.c is built twice, by gcc alone and
 * with the plugin, and both must compute the same.
 *
 * Shape NAME calls nothing indirectly but NAME_0 and NAME_1, of type NAME_fn;
 * "which" chooses between them.
 */
#ifndef SHAPES_H
#define SHAPES_H

#include "optpoline.h"
#include "optpoline_static_call.h"

typedef unsigned long word;

struct pair {
	word a, b;
};

struct big {
	word a[9];
};

struct node {
	struct node *next;
	word value;
};

/* X(NAME, type of result, arguments) */
#define CALLS(X)							\
	X(plain, word, word a)						\
	X(memory, word, word a)						\
	X(returned, word, word a)					\
	X(nine, word, word a, word b, word c, word d, word e, word f,	\
	  word g, word h, word i)					\
	X(pair, struct pair, word a)					\
	X(big, struct big, word a)					\
	X(by_value, word, struct big b, word a)				\
	X(variadic, word, int count, ...)				\
	X(nothing, void, word *result, word a)				\
	X(loop, word, word a)						\
	X(list, word, struct node *node)				\
	X(nested, word, word a)						\
	X(twice, word, word a)						\
	X(branches, word, word a)					\
	X(in_switch, word, word a)					\
	X(in_asm, word, word a)						\
	X(live, word, word a, word b)					\
	X(frame, word, word *a, word n)					\
	X(wide, unsigned __int128, word a)				\
	X(keyed, word, unsigned int key, word a)

#define TAILS(X)							\
	X(tail, word, word a)						\
	X(tail_memory, word, word a)					\
	X(tail_six, word, word a, word b, word c, word d, word e, word f) \
	X(tail_branches, word, word a)

/* A tail call that returns nothing, in a function of that type. */
#define VOID_TAILS(X)							\
	X(tail_nothing, void, word *result, word a)

/* Through each register that has a thunk: the argument is in a variable. */
#define REGISTERS(X)							\
	X(rax, word, void) X(rcx, word, void) X(rdx, word, void)	\
	X(rbx, word, void) X(rbp, word, void) X(rsi, word, void)	\
	X(rdi, word, void) X(r8, word, void) X(r9, word, void)		\
	X(r10, word, void) X(r11, word, void) X(r12, word, void)	\
	X(r13, word, void) X(r14, word, void) X(r15, word, void)

#define STATICS(X)							\
	X(static_call, word, word a)					\
	X(static_tail, word, word a)					\
	X(static_null, void, word *a)

#define ALL(X) CALLS(X) TAILS(X) VOID_TAILS(X) REGISTERS(X)

#define DECLARE(name, type, ...)					\
	typedef type name##_fn(__VA_ARGS__);				\
	name##_fn name##_0, name##_1;					\
	extern name##_fn *name##_targets[2];
ALL(DECLARE)
STATICS(DECLARE)

extern word register_argument;
extern struct node nodes[4];

/* How the two builds name what they make. */
#ifdef PLAIN
#define SHAPE(name) plain_shape_##name
#else
#define SHAPE(name) shape_##name
#endif

#define DECLARE_SHAPE(name, ...)					\
	word plain_shape_##name(unsigned int which, word arg);		\
	word shape_##name(unsigned int which, word arg);
ALL(DECLARE_SHAPE)
STATICS(DECLARE_SHAPE)

#endif /* SHAPES_H */
