// SPDX-License-Identifier: GPL-2.0-only
/*
 * Indirect call sites as the compiler makes them.
 *
 * Each site is a function of its own with one indirect call in it, so that
 * it can be found by name.  In the call form something is left to do after
 * the call; in the tail form the call is the function's last act, and gcc
 * emits a jmp to the thunk.
 *
 * Every call is checked: the value tells which target ran on which argument,
 * and whether the rest of a call-form site ran; the return address that the
 * target saw tells that a tail call returns past its site.
 */
#include <linux/instruction_pointer.h>

#include "optbench_drive.h"

#define OPTBENCH_MAX_TARGETS	16

typedef u64 (*optbench_target_fn)(u64 arg, unsigned long *ret);
typedef u64 (*optbench_site_fn)(u64 arg, unsigned long *ret,
				optbench_target_fn target);

#define DEFINE_TARGET(id)						\
static noinline __noclone u64						\
OPTBENCH_SYMBOL(target_##id)(u64 arg, unsigned long *ret)		\
{									\
	*ret = _RET_IP_;						\
	return optbench_value(arg, id);					\
}

DEFINE_TARGET(0)
DEFINE_TARGET(1)
DEFINE_TARGET(2)
DEFINE_TARGET(3)
DEFINE_TARGET(4)
DEFINE_TARGET(5)
DEFINE_TARGET(6)
DEFINE_TARGET(7)
DEFINE_TARGET(8)
DEFINE_TARGET(9)
DEFINE_TARGET(10)
DEFINE_TARGET(11)
DEFINE_TARGET(12)
DEFINE_TARGET(13)
DEFINE_TARGET(14)
DEFINE_TARGET(15)

static const optbench_target_fn optbench_targets[OPTBENCH_MAX_TARGETS] = {
	OPTBENCH_SYMBOL(target_0), OPTBENCH_SYMBOL(target_1),
	OPTBENCH_SYMBOL(target_2), OPTBENCH_SYMBOL(target_3),
	OPTBENCH_SYMBOL(target_4), OPTBENCH_SYMBOL(target_5),
	OPTBENCH_SYMBOL(target_6), OPTBENCH_SYMBOL(target_7),
	OPTBENCH_SYMBOL(target_8), OPTBENCH_SYMBOL(target_9),
	OPTBENCH_SYMBOL(target_10), OPTBENCH_SYMBOL(target_11),
	OPTBENCH_SYMBOL(target_12), OPTBENCH_SYMBOL(target_13),
	OPTBENCH_SYMBOL(target_14), OPTBENCH_SYMBOL(target_15),
};

/*
 * Inlined into one batch function for each site: the call of the site is
 * direct, and the only one that a tail call may return behind.
 */
static __always_inline unsigned int
optbench_drive(struct optbench_run *run, optbench_site_fn site, u64 mark,
	       unsigned long *known_ret, enum optbench_order order,
	       unsigned int targets)
{
	unsigned int errors = 0;
	unsigned int i;

	for (i = 0; i < OPTBENCH_BATCH; i++) {
		unsigned int id = optbench_pick(run, order, targets);
		unsigned long ret = 0;
		u64 arg = run->seed;
		u64 value = site(arg, &ret, READ_ONCE(optbench_targets[id]));

		if (likely(value == (optbench_value(arg, id) ^ mark) &&
			   optbench_same_return(known_ret, ret)))
			continue;
		errors++;
		pr_err_ratelimited("%ps: target %u gave %llx, returned to %pS\n",
				   site, id, value, (void *)ret);
	}
	return errors;
}

#define DEFINE_BATCH(name, mark, order, targets)			\
static unsigned int batch_##name(struct optbench_run *run)		\
{									\
	static unsigned long known_ret;					\
									\
	return optbench_drive(run, OPTBENCH_SYMBOL(name), mark,		\
			      &known_ret, order, targets);		\
}

#define DEFINE_CALL(shape, order, targets)				\
static noinline __noclone u64						\
OPTBENCH_SYMBOL(call_##shape)(u64 arg, unsigned long *ret,		\
			      optbench_target_fn target)		\
{									\
	return target(arg, ret) ^ OPTBENCH_CALL_MARK;			\
}									\
DEFINE_BATCH(call_##shape, OPTBENCH_CALL_MARK, order, targets)

#define DEFINE_TAIL(shape, order, targets)				\
static noinline __noclone u64						\
OPTBENCH_SYMBOL(tail_##shape)(u64 arg, unsigned long *ret,		\
			      optbench_target_fn target)		\
{									\
	return target(arg, ret);					\
}									\
DEFINE_BATCH(tail_##shape, 0, order, targets)

DEFINE_CALL(1, OPTBENCH_SKEWED, 1)
DEFINE_CALL(2_skewed, OPTBENCH_SKEWED, 2)
DEFINE_CALL(2_random, OPTBENCH_RANDOM, 2)
DEFINE_CALL(2_phase, OPTBENCH_PHASE, 2)
DEFINE_CALL(4_skewed, OPTBENCH_SKEWED, 4)
DEFINE_CALL(4_random, OPTBENCH_RANDOM, 4)
DEFINE_CALL(4_phase, OPTBENCH_PHASE, 4)
DEFINE_CALL(16_skewed, OPTBENCH_SKEWED, 16)
DEFINE_CALL(16_random, OPTBENCH_RANDOM, 16)
DEFINE_CALL(16_phase, OPTBENCH_PHASE, 16)

DEFINE_TAIL(1, OPTBENCH_SKEWED, 1)
DEFINE_TAIL(2_skewed, OPTBENCH_SKEWED, 2)
DEFINE_TAIL(2_random, OPTBENCH_RANDOM, 2)
DEFINE_TAIL(2_phase, OPTBENCH_PHASE, 2)
DEFINE_TAIL(4_skewed, OPTBENCH_SKEWED, 4)
DEFINE_TAIL(4_random, OPTBENCH_RANDOM, 4)
DEFINE_TAIL(4_phase, OPTBENCH_PHASE, 4)
DEFINE_TAIL(16_skewed, OPTBENCH_SKEWED, 16)
DEFINE_TAIL(16_random, OPTBENCH_RANDOM, 16)
DEFINE_TAIL(16_phase, OPTBENCH_PHASE, 16)

static const struct optbench_scenario optbench_site_scenarios[] = {
	{ "call_1", "skewed", 1, batch_call_1 },
	{ "call_2_skewed", "skewed", 2, batch_call_2_skewed },
	{ "call_2_random", "random", 2, batch_call_2_random },
	{ "call_2_phase", "phase", 2, batch_call_2_phase },
	{ "call_4_skewed", "skewed", 4, batch_call_4_skewed },
	{ "call_4_random", "random", 4, batch_call_4_random },
	{ "call_4_phase", "phase", 4, batch_call_4_phase },
	{ "call_16_skewed", "skewed", 16, batch_call_16_skewed },
	{ "call_16_random", "random", 16, batch_call_16_random },
	{ "call_16_phase", "phase", 16, batch_call_16_phase },
	{ "tail_1", "skewed", 1, batch_tail_1 },
	{ "tail_2_skewed", "skewed", 2, batch_tail_2_skewed },
	{ "tail_2_random", "random", 2, batch_tail_2_random },
	{ "tail_2_phase", "phase", 2, batch_tail_2_phase },
	{ "tail_4_skewed", "skewed", 4, batch_tail_4_skewed },
	{ "tail_4_random", "random", 4, batch_tail_4_random },
	{ "tail_4_phase", "phase", 4, batch_tail_4_phase },
	{ "tail_16_skewed", "skewed", 16, batch_tail_16_skewed },
	{ "tail_16_random", "random", 16, batch_tail_16_random },
	{ "tail_16_phase", "phase", 16, batch_tail_16_phase },
};

const struct optbench_table optbench_site_table = {
	optbench_site_scenarios, ARRAY_SIZE(optbench_site_scenarios)
};
