// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sites by what goes over them: arguments in registers and on the stack,
 * structs and odd sizes as arguments and as results.
 *
 * Each shape NAME has a site, the function optseed_NAME, two targets, and
 * right_NAME(), which makes one call and tells whether all is right.
 */
#include <linux/stdarg.h>

#include "optseed.h"

#define A	(arg)
#define B	(arg * 3)
#define C	(arg ^ 5)
#define D	(arg + 7)
#define E	(arg >> 9)
#define F	(arg << 11)

/* Not commutative: two arguments that change places are seen. */
static __always_inline u64 mix(u64 a, u64 b)
{
	return a * 31 + (b ^ a >> 7);
}

static __always_inline u64 mix6(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	return mix(mix(mix(mix(mix(a, b), c), d), e), f);
}

DEFINE_TARGETS(void, nothing, (void)(*result = optbench_value(arg, id)),
	       u64 arg, u64 *result);

static noinline __noclone void
optseed_nothing(void (*target)(u64 arg, u64 *result), u64 arg, u64 *result)
{
	target(arg, result);
	*result ^= OPTBENCH_CALL_MARK;
}

static __always_inline bool right_nothing(u64 arg, unsigned int id)
{
	u64 result = 0;

	optseed_nothing(nothing_targets[id].call, arg, &result);
	return result == (optbench_value(arg, id) ^ OPTBENCH_CALL_MARK);
}
DEFINE_CHECKS(nothing, OPTBENCH_SKEWED, 2)

DEFINE_TARGETS(u64, args_6, optbench_value(mix6(a, b, c, d, e, f), id),
	       u64 a, u64 b, u64 c, u64 d, u64 e, u64 f);

static noinline __noclone u64
optseed_args_6(u64 (*target)(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f), u64 arg)
{
	return target(A, B, C, D, E, F) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_args_6(u64 arg, unsigned int id)
{
	return optseed_args_6(args_6_targets[id].call, arg) ==
	       (optbench_value(mix6(A, B, C, D, E, F), id) ^ OPTBENCH_CALL_MARK);
}
DEFINE_CHECKS(args_6, OPTBENCH_SKEWED, 2)

#define NINE_PARAMS	u64 a, u64 b, u64 c, u64 d, u64 e, u64 f,	\
			u64 g, u16 h, u64 *i

DEFINE_TARGETS(u64, args_9,
	       optbench_value(mix6(a, b, c, d, e, f) + mix6(f, e, d, g, h, *i), id),
	       NINE_PARAMS);

static noinline __noclone u64 optseed_args_9(u64 (*target)(NINE_PARAMS), u64 arg)
{
	u64 last = F;

	return target(A, B, C, D, E, F, A, B, &last) ^ OPTBENCH_CALL_MARK;
}

static __always_inline u64 nine_value(u64 arg, unsigned int id)
{
	return optbench_value(mix6(A, B, C, D, E, F) +
			      mix6(F, E, D, A, (u16)B, F), id);
}

static __always_inline bool right_args_9(u64 arg, unsigned int id)
{
	return optseed_args_9(args_9_targets[id].call, arg) ==
	       (nine_value(arg, id) ^ OPTBENCH_CALL_MARK);
}
DEFINE_CHECKS(args_9, OPTBENCH_SKEWED, 2)

/* A tail call that fits what its own caller put on the stack. */
static noinline __noclone u64
optseed_args_9_tail(NINE_PARAMS, u64 (*target)(NINE_PARAMS))
{
	return target(f, e, d, c, b, a, g, h, i);
}

static __always_inline bool right_args_9_tail(u64 arg, unsigned int id)
{
	u64 last = F;

	return optseed_args_9_tail(F, E, D, C, B, A, A, B, &last,
				   args_9_targets[id].call) == nine_value(arg, id);
}
DEFINE_CHECKS(args_9_tail, OPTBENCH_SKEWED, 2)

/* Comes back in two registers. */
struct pair {
	u64 a;
	u64 b;
};

DEFINE_TARGETS(struct pair, pair,
	       ((struct pair){ optbench_value(arg, id), arg + id }), u64 arg);

static noinline __noclone u64 optseed_pair(struct pair (*target)(u64 arg), u64 arg)
{
	struct pair pair = target(arg);

	return pair.a - pair.b;
}

static __always_inline bool right_pair(u64 arg, unsigned int id)
{
	return optseed_pair(pair_targets[id].call, arg) ==
	       optbench_value(arg, id) - (arg + id);
}
DEFINE_CHECKS(pair, OPTBENCH_SKEWED, 2)

/* Returned in memory, whose address is a hidden first argument. */
struct big {
	u64 value[5];
};

DEFINE_TARGETS(struct big, big,
	       ((struct big){ { A, B, C, D, optbench_value(arg, id) } }), u64 arg);

static __always_inline bool big_is_right(const struct big *big, u64 arg, unsigned int id)
{
	return big->value[0] == A && big->value[1] == B && big->value[2] == C &&
	       big->value[3] == D && big->value[4] == optbench_value(arg, id);
}

static noinline __noclone u64
optseed_big(struct big (*target)(u64 arg), u64 arg, struct big *result)
{
	*result = target(arg);
	return OPTBENCH_CALL_MARK;
}

static __always_inline bool right_big(u64 arg, unsigned int id)
{
	struct big big = { { 0 } };

	return optseed_big(big_targets[id].call, arg, &big) == OPTBENCH_CALL_MARK &&
	       big_is_right(&big, arg, id);
}
DEFINE_CHECKS(big, OPTBENCH_SKEWED, 2)

static noinline __noclone struct big
optseed_big_tail(struct big (*target)(u64 arg), u64 arg)
{
	return target(arg);
}

static __always_inline bool right_big_tail(u64 arg, unsigned int id)
{
	struct big big = optseed_big_tail(big_targets[id].call, arg);

	return big_is_right(&big, arg, id);
}
DEFINE_CHECKS(big_tail, OPTBENCH_SKEWED, 2)

/* Goes over on the stack, between arguments in registers. */
DEFINE_TARGETS(u64, by_value,
	       optbench_value(mix6(first, big.value[0], big.value[1],
				   big.value[2], big.value[4], last), id),
	       u64 first, struct big big, u64 last);

static noinline __noclone u64
optseed_by_value(u64 (*target)(u64 first, struct big big, u64 last), u64 arg)
{
	const struct big big = { { A, B, C, D, E } };

	return target(arg + 1, big, F) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_by_value(u64 arg, unsigned int id)
{
	return optseed_by_value(by_value_targets[id].call, arg) ==
	       (optbench_value(mix6(arg + 1, A, B, C, E, F), id) ^ OPTBENCH_CALL_MARK);
}
DEFINE_CHECKS(by_value, OPTBENCH_SKEWED, 2)

static __always_inline u64 sum_of(unsigned int count, va_list args)
{
	u64 sum = 0;

	while (count--)
		sum = mix(sum, va_arg(args, u64));
	return sum;
}

DEFINE_TARGETS(u64, variadic, ({
	va_list args;
	u64 sum;

	va_start(args, count);
	sum = sum_of(count, args);
	va_end(args);
	optbench_value(sum, id);
}), unsigned int count, ...);

static noinline __noclone u64
optseed_variadic(u64 (*target)(unsigned int count, ...), u64 arg)
{
	return target(7, A, B, C, D, E, F, A) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_variadic(u64 arg, unsigned int id)
{
	u64 sum = mix(mix6(mix(0, A), B, C, D, E, F), A);

	return optseed_variadic(variadic_targets[id].call, arg) ==
	       (optbench_value(sum, id) ^ OPTBENCH_CALL_MARK);
}
DEFINE_CHECKS(variadic, OPTBENCH_SKEWED, 2)

/* What is narrower than its register must be widened rightly. */
DEFINE_TARGETS(s8, narrow, (s8)(a + (c ? b : 1) + id), u8 a, s16 b, bool c);

static noinline __noclone s64
optseed_narrow(s8 (*target)(u8 a, s16 b, bool c), u64 arg)
{
	return (s64)target(arg, arg >> 8, arg & 1 << 30) * 2;
}

static __always_inline bool right_narrow(u64 arg, unsigned int id)
{
	s16 b = arg >> 8;

	return optseed_narrow(narrow_targets[id].call, arg) ==
	       (s64)(s8)((u8)arg + (arg & 1 << 30 ? b : 1) + id) * 2;
}
DEFINE_CHECKS(narrow, OPTBENCH_SKEWED, 2)

/* Two registers for one argument, and for the result. */
DEFINE_TARGETS(__uint128_t, wide, (value ^ first) + id, u64 first, __uint128_t value);

static noinline __noclone u64
optseed_wide(__uint128_t (*target)(u64 first, __uint128_t value), u64 arg)
{
	__uint128_t value = target(B, (__uint128_t)C << 64 | A);

	return mix(value, value >> 64);
}

static __always_inline bool right_wide(u64 arg, unsigned int id)
{
	__uint128_t value = (((__uint128_t)C << 64 | A) ^ B) + id;

	return optseed_wide(wide_targets[id].call, arg) == mix(value, value >> 64);
}
DEFINE_CHECKS(wide, OPTBENCH_SKEWED, 2)

static const struct optbench_scenario scenarios[] = {
	{ "nothing", "skewed", 2, batch_nothing },
	{ "args_6", "skewed", 2, batch_args_6 },
	{ "args_9", "skewed", 2, batch_args_9 },
	{ "args_9_tail", "skewed", 2, batch_args_9_tail },
	{ "pair", "skewed", 2, batch_pair },
	{ "big", "skewed", 2, batch_big },
	{ "big_tail", "skewed", 2, batch_big_tail },
	{ "by_value", "skewed", 2, batch_by_value },
	{ "variadic", "skewed", 2, batch_variadic },
	{ "narrow", "skewed", 2, batch_narrow },
	{ "wide", "skewed", 2, batch_wide },
};

const struct optbench_table optseed_shape_table = {
	scenarios, ARRAY_SIZE(scenarios)
};
