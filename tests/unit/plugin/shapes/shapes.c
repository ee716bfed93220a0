// SPDX-License-Identifier: GPL-2.0-or-later
#include "shapes.h"

#define DEFINE(name) word SHAPE(name)(unsigned int which, word arg)

struct memory_ops {
	word padding;
	memory_fn *fn;
};

struct tail_ops {
	word padding;
	tail_memory_fn *fn;
};

DEFINE(plain)
{
	return plain_targets[which](arg) + 1;
}

DEFINE(memory)
{
	struct memory_ops ops = { 0, memory_targets[which] };
	struct memory_ops *volatile pointer = &ops;

	return pointer->fn(arg) + 1;
}

static __attribute__((__noinline__)) returned_fn *pick(unsigned int which)
{
	return returned_targets[which];
}

DEFINE(returned)
{
	return pick(which)(arg) + 1;
}

DEFINE(nine)
{
	return nine_targets[which](arg, arg + 1, 2, 3, arg ^ 4, 5, arg + 6, 7, 8) + 1;
}

DEFINE(pair)
{
	struct pair pair = pair_targets[which](arg);

	return pair.a ^ pair.b;
}

DEFINE(big)
{
	struct big big = big_targets[which](arg);

	return big.a[0] + big.a[1] + big.a[7] + big.a[8];
}

DEFINE(by_value)
{
	struct big big = { { arg, 1, 2, 3, 4, 5, 6, 7, arg + 8 } };

	return by_value_targets[which](big, arg) + 1;
}

DEFINE(variadic)
{
	return variadic_targets[which](8, arg, 1UL, arg, 3UL, 4UL, 5UL, arg, 7UL) + 1;
}

DEFINE(nothing)
{
	word result;

	nothing_targets[which](&result, arg);
	return result;
}

DEFINE(loop)
{
	word sum = 0;

	for (int i = 0; i < 10; i++)
		sum += loop_targets[which](arg + i);
	return sum;
}

DEFINE(list)
{
	word sum = arg;

	for (struct node *node = nodes; node; node = node->next)
		sum ^= list_targets[which](node);
	return sum;
}

DEFINE(nested)
{
	nested_fn *fn = nested_targets[which];

	return fn(fn(arg) + fn(arg + 1)) + 1;
}

DEFINE(twice)
{
	twice_fn *fn = twice_targets[which];
	word first = fn(arg);

	return first ^ fn(arg + 1);
}

DEFINE(branches)
{
	if (branches_targets[which](arg) & 1)
		return branches_targets[which](arg + 1) + 1;
	return branches_targets[which](arg + 2) ^ 2;
}

DEFINE(in_switch)
{
	switch (arg & 7) {
	case 0:
		return in_switch_targets[which](arg) + 1;
	case 1:
		return in_switch_targets[which](arg + 1) ^ 5;
	case 5:
		arg++;
		__attribute__((__fallthrough__));
	default:
		return in_switch_targets[which](arg) - 3;
	}
}

DEFINE(in_asm)
{
	word result;

	asm volatile("add $3, %0\n\tcmp $17, %0" : "+r" (arg) : : "cc", "memory");
	result = in_asm_targets[which](arg);
	asm volatile("1: rol $5, %0\n\t.pushsection .discard.shapes, \"a\"\n\t"
		     ".quad 1b\n\t.popsection" : "+r" (result) : : "cc", "memory");
	return result;
}

DEFINE(live)
{
	word a = arg * 3, b = arg ^ 5, c = arg + 7, d = arg * 11, e = arg - 13;
	word result = live_targets[which](a, b);

	asm volatile("" : "+r" (a), "+r" (b), "+r" (c), "+r" (d), "+r" (e));
	return result + a + (b ^ c) + (d ^ e);
}

/* A frame of a size that is known when it runs, as alloca() makes it. */
DEFINE(frame)
{
	word n = 3 + (arg & 3);
	word *a = __builtin_alloca(n * sizeof(*a));

	for (word i = 0; i < n; i++)
		a[i] = arg + i;
	return frame_targets[which](a, n) + a[2];
}

DEFINE(wide)
{
	unsigned __int128 value = wide_targets[which](arg);

	return (word)value ^ (word)(value >> 64);
}

DEFINE(keyed)
{
	keyed_fn *fn OPTPOLINE_KEY(1, 4, 2) = keyed_targets[which];

	return fn(which << 2, arg) + 1;
}

DEFINE(tail)
{
	return tail_targets[which](arg);
}

DEFINE(tail_memory)
{
	static struct tail_ops ops[2];
	struct tail_ops *volatile pointer = &ops[which];

	pointer->fn = tail_memory_targets[which];
	return pointer->fn(arg);
}

DEFINE(tail_six)
{
	return tail_six_targets[which](arg, 1, arg + 2, 3, arg * 4, 5);
}

DEFINE(tail_branches)
{
	if (arg & 1)
		return tail_branches_targets[which](arg);
	return tail_branches_targets[which](arg + 3);
}

/* The call is in a function of its own, whose symbol begins as the shape's. */
#ifdef PLAIN
#define VOID_TAIL plain_shape_tail_nothing_void
#else
#define VOID_TAIL shape_tail_nothing_void
#endif

void VOID_TAIL(word *result, unsigned int which, word arg);
void VOID_TAIL(word *result, unsigned int which, word arg)
{
	tail_nothing_targets[which](result, arg);
}

DEFINE(tail_nothing)
{
	word result = 0;

	VOID_TAIL(&result, which, arg);
	return result;
}

#define REGISTER_SHAPE(name, ...)					\
	DEFINE(name)							\
	{								\
		register name##_fn *fn asm(#name);			\
									\
		register_argument = arg;				\
		fn = name##_targets[which];				\
		asm volatile("" : "+r" (fn));				\
		return fn() + 1;					\
	}
REGISTERS(REGISTER_SHAPE)

/* What a static call does until it is set, and what a plain call does. */
#ifdef PLAIN
DEFINE(static_call)
{
	return static_call_targets[which](arg) + 1;
}

DEFINE(static_tail)
{
	return static_tail_targets[which](arg);
}

DEFINE(static_null)
{
	if (which)
		static_null_targets[which](&arg);
	return arg;
}
#else
OPTPOLINE_STATIC_CALL_DEFINE(key_static_call, static_call_0);
OPTPOLINE_STATIC_CALL_DEFINE(key_static_tail, static_tail_0);

DEFINE(static_call)
{
	(void)which;
	return optpoline_static_call(key_static_call)(arg) + 1;
}

DEFINE(static_tail)
{
	(void)which;
	return optpoline_static_call(key_static_tail)(arg);
}

OPTPOLINE_STATIC_CALL_DEFINE_NULL(key_static_null, void(word *));

DEFINE(static_null)
{
	(void)which;
	optpoline_static_call(key_static_null)(&arg);
	return arg;
}
#endif
