// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sites by what stands around them: where the pointer comes from, loops,
 * branches, other calls.  The conventions are those of optseed_shapes.c.
 */
#include <optpoline.h>

#include "optseed.h"

DEFINE_TARGETS(u64, simple, optbench_value(arg, id), u64 arg);

typedef u64 (*simple_fn)(u64 arg);

static __always_inline u64 marked(u64 arg, unsigned int id)
{
	return optbench_value(arg, id) ^ OPTBENCH_CALL_MARK;
}

/* The pointer is an operand in memory. */
struct method {
	unsigned int id;
	simple_fn call;
};

static noinline __noclone u64 optseed_memory(const struct method *method, u64 arg)
{
	return method->call(arg) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_memory(u64 arg, unsigned int id)
{
	const struct method method = { id, simple_targets[id].call };

	return optseed_memory(&method, arg) == marked(arg, id);
}
DEFINE_CHECKS(memory, OPTBENCH_SKEWED, 2)

static noinline __noclone u64 optseed_memory_tail(const struct method *method, u64 arg)
{
	return method->call(arg);
}

static __always_inline bool right_memory_tail(u64 arg, unsigned int id)
{
	const struct method method = { id, simple_targets[id].call };

	return optseed_memory_tail(&method, arg) == optbench_value(arg, id);
}
DEFINE_CHECKS(memory_tail, OPTBENCH_SKEWED, 2)

static noinline __noclone u64 optseed_indexed(unsigned int index, u64 arg)
{
	return simple_targets[index].call(arg) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_indexed(u64 arg, unsigned int id)
{
	return optseed_indexed(id, arg) == marked(arg, id);
}
DEFINE_CHECKS(indexed, OPTBENCH_SKEWED, 2)

/* A table of operations, as drivers have them: four sites in one function. */
struct device;

struct operations {
	int (*open)(struct device *device);
	u64 (*read)(struct device *device, u64 arg);
	void (*write)(struct device *device, u64 arg);
	void (*close)(struct device *device);
};

struct device {
	const struct operations *operations;
	int users;
	u64 value;
};

DEFINE_TARGETS(int, open, (int)id - ++device->users, struct device *device);
DEFINE_TARGETS(u64, read, optbench_value(device->value + arg, id),
	       struct device *device, u64 arg);
DEFINE_TARGETS(void, write, (void)(device->value = optbench_value(arg, id)),
	       struct device *device, u64 arg);
DEFINE_TARGETS(void, close, (void)(device->users -= id + 1), struct device *device);

static noinline __noclone u64 optseed_ops(struct device *device, u64 arg)
{
	u64 result = device->operations->open(device);

	device->operations->write(device, arg);
	result += device->operations->read(device, arg);
	if (device->operations->close)
		device->operations->close(device);
	return result;
}

static __always_inline bool right_ops(u64 arg, unsigned int id)
{
	const struct operations operations = {
		open_targets[id].call, read_targets[id].call, write_targets[id].call,
		arg & 1 ? close_targets[id].call : NULL,
	};
	struct device device = { .operations = &operations };
	u64 result = optseed_ops(&device, arg);

	return device.users == (arg & 1 ? -(int)id : 1) &&
	       device.value == optbench_value(arg, id) &&
	       result == optbench_value(device.value + arg, id) + (int)id - 1;
}
DEFINE_CHECKS(ops, OPTBENCH_SKEWED, 2)

static noinline __noclone u64 optseed_loop(const simple_fn *targets, u64 arg)
{
	for (; *targets; targets++)
		arg = (*targets)(arg);
	return arg;
}

static __always_inline u64 three_deep(u64 arg, unsigned int id)
{
	return optbench_value(optbench_value(optbench_value(arg, id), !id), id);
}

static __always_inline bool right_loop(u64 arg, unsigned int id)
{
	const simple_fn targets[] = {
		simple_targets[id].call, simple_targets[!id].call, simple_targets[id].call, NULL
	};

	return optseed_loop(targets, arg) == three_deep(arg, id);
}
DEFINE_CHECKS(loop, OPTBENCH_SKEWED, 2)

/* One call in the source, four in the code. */
static noinline __noclone u64 optseed_unrolled(const simple_fn *target, u64 arg)
{
	unsigned int i;

#pragma GCC unroll 4
	for (i = 0; i < 4; i++)
		arg = READ_ONCE(*target)(arg) + i;
	return arg;
}

static __always_inline bool right_unrolled(u64 arg, unsigned int id)
{
	simple_fn target = simple_targets[id].call;
	u64 expected = arg;
	unsigned int i;

	for (i = 0; i < 4; i++)
		expected = optbench_value(expected, id) + i;
	return optseed_unrolled(&target, arg) == expected;
}
DEFINE_CHECKS(unrolled, OPTBENCH_SKEWED, 2)

static noinline __noclone u64 optseed_nested(simple_fn outer, simple_fn inner, u64 arg)
{
	return outer(inner(outer(arg))) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_nested(u64 arg, unsigned int id)
{
	return optseed_nested(simple_targets[id].call, simple_targets[!id].call, arg) ==
	       (three_deep(arg, id) ^ OPTBENCH_CALL_MARK);
}
DEFINE_CHECKS(nested, OPTBENCH_SKEWED, 2)

/* The target enters its own site again. */
typedef u64 (*again_fn)(u64 arg, unsigned int depth);

static noinline __noclone u64 optseed_again(again_fn target, u64 arg, unsigned int depth)
{
	return target(arg, depth) ^ OPTBENCH_CALL_MARK;
}

static again_fn next_again(unsigned int id);

DEFINE_TARGETS(u64, again,
	       depth ? optseed_again(next_again(!id), optbench_value(arg, id), depth - 1) :
		       arg,
	       u64 arg, unsigned int depth);

static again_fn next_again(unsigned int id)
{
	return again_targets[id].call;
}

static __always_inline bool right_again(u64 arg, unsigned int id)
{
	return optseed_again(again_targets[id].call, arg, 3) == three_deep(arg, id);
}
DEFINE_CHECKS(again, OPTBENCH_RANDOM, 2)

/* A pointer that a call gave, called at once. */
DEFINE_TARGETS(simple_fn, chosen, simple_targets[arg & 1 ? id : !id].call, u64 arg);

static noinline __noclone u64 optseed_chosen(simple_fn (*choose)(u64 arg), u64 arg)
{
	return choose(arg)(arg) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_chosen(u64 arg, unsigned int id)
{
	return optseed_chosen(chosen_targets[id].call, arg) == marked(arg, arg & 1 ? id : !id);
}
DEFINE_CHECKS(chosen, OPTBENCH_SKEWED, 2)

/* Calls in branches, one of them a tail call, that gcc would like to merge. */
static noinline __noclone u64 optseed_branches(simple_fn target, u64 arg)
{
	switch (arg & 3) {
	case 0:
		return target(arg) ^ OPTBENCH_CALL_MARK;
	case 1:
		return target(arg + 1) ^ OPTBENCH_CALL_MARK;
	case 2:
		return target(arg);
	default:
		return OPTBENCH_CALL_MARK;
	}
}

static __always_inline bool right_branches(u64 arg, unsigned int id)
{
	const u64 expected[] = {
		marked(arg, id), marked(arg + 1, id), optbench_value(arg, id),
		OPTBENCH_CALL_MARK,
	};

	return optseed_branches(simple_targets[id].call, arg) == expected[arg & 3];
}
DEFINE_CHECKS(branches, OPTBENCH_SKEWED, 2)

/* An inline function with a site in it, at two places. */
static __always_inline u64 guarded(simple_fn target, u64 arg)
{
	return target ? target(arg) : arg;
}

static noinline __noclone u64 optseed_twice(simple_fn first, simple_fn second, u64 arg)
{
	return guarded(second, guarded(first, arg)) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_twice(u64 arg, unsigned int id)
{
	simple_fn first = arg & 1 ? simple_targets[id].call : NULL;
	u64 between = arg & 1 ? optbench_value(arg, id) : arg;

	return optseed_twice(first, simple_targets[!id].call, arg) == marked(between, !id);
}
DEFINE_CHECKS(twice, OPTBENCH_SKEWED, 2)

/* Out of the way, in .text.unlikely. */
static noinline __noclone __cold u64 optseed_cold(simple_fn target, u64 arg)
{
	return target(arg) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_cold(u64 arg, unsigned int id)
{
	return optseed_cold(simple_targets[id].call, arg) == marked(arg, id);
}
DEFINE_CHECKS(cold, OPTBENCH_SKEWED, 2)

/* More values live over the call than registers keep. */
static noinline __noclone u64 optseed_pressure(simple_fn target, const u64 *in)
{
	u64 a = in[0], b = in[1], c = in[2], d = in[3], e = in[4];
	u64 f = in[5], g = in[6], h = in[7], i = in[8];
	u64 result = target(a + b + c + d + e + f + g + h + i);

	return result ^ a ^ b << 1 ^ c << 2 ^ d << 3 ^ e << 4 ^ f << 5 ^ g << 6 ^
	       h << 7 ^ i << 8;
}

static __always_inline bool right_pressure(u64 arg, unsigned int id)
{
	u64 in[9], sum = 0, expected = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(in); i++) {
		in[i] = optbench_value(arg, i);
		sum += in[i];
		expected ^= in[i] << i;
	}
	return optseed_pressure(simple_targets[id].call, in) ==
	       (optbench_value(sum, id) ^ expected);
}
DEFINE_CHECKS(pressure, OPTBENCH_SKEWED, 2)

/* What the plugin was told to leave alone: an ordinary site. */
static noinline __noclone __no_optpoline u64 optseed_opted_out(simple_fn target, u64 arg)
{
	return target(arg) ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_opted_out(u64 arg, unsigned int id)
{
	return optseed_opted_out(simple_targets[id].call, arg) == marked(arg, id);
}
DEFINE_CHECKS(opted_out, OPTBENCH_SKEWED, 2)

static const struct optbench_scenario scenarios[] = {
	{ "memory", "skewed", 2, batch_memory },
	{ "memory_tail", "skewed", 2, batch_memory_tail },
	{ "indexed", "skewed", 2, batch_indexed },
	{ "ops", "skewed", 2, batch_ops },
	{ "loop", "skewed", 2, batch_loop },
	{ "unrolled", "skewed", 2, batch_unrolled },
	{ "nested", "skewed", 2, batch_nested },
	{ "again", "random", 2, batch_again },
	{ "chosen", "skewed", 2, batch_chosen },
	{ "branches", "skewed", 2, batch_branches },
	{ "twice", "skewed", 2, batch_twice },
	{ "cold", "skewed", 2, batch_cold },
	{ "pressure", "skewed", 2, batch_pressure },
	{ "opted_out", "skewed", 2, batch_opted_out },
};

const struct optbench_table optseed_more_shape_table = {
	scenarios, ARRAY_SIZE(scenarios)
};
