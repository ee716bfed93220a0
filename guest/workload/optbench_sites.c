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
#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/atomic.h>
#include <linux/instruction_pointer.h>
#include <linux/printk.h>

#include "optbench.h"

#define OPTBENCH_MAX_TARGETS	16
#define OPTBENCH_CALL_MARK	0x0ddba11c0ffee000ULL

enum optbench_order {
	OPTBENCH_SKEWED,	/* target 0 gets nine calls of ten */
	OPTBENCH_RANDOM,	/* all alike */
	OPTBENCH_PHASE,		/* as skewed, but the hot target changes */
};

typedef u64 (*optbench_target_fn)(u64 arg, unsigned long *ret);
typedef u64 (*optbench_site_fn)(u64 arg, unsigned long *ret,
				optbench_target_fn target);

static __always_inline u64 optbench_value(u64 arg, unsigned int id)
{
	return (arg ^ (id + 1)) * 0x9e3779b97f4a7c15ULL + id;
}

#define DEFINE_TARGET(id)						\
static noinline __noclone u64 optbench_target_##id(u64 arg,		\
						   unsigned long *ret)	\
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
	optbench_target_0, optbench_target_1,
	optbench_target_2, optbench_target_3,
	optbench_target_4, optbench_target_5,
	optbench_target_6, optbench_target_7,
	optbench_target_8, optbench_target_9,
	optbench_target_10, optbench_target_11,
	optbench_target_12, optbench_target_13,
	optbench_target_14, optbench_target_15,
};

static __always_inline unsigned int
optbench_pick(struct optbench_run *run, enum optbench_order order,
	      unsigned int targets)
{
	u32 dice = optbench_random(run) >> 32;
	unsigned int hot = order == OPTBENCH_PHASE ? run->phase % targets : 0;

	if (targets == 1)
		return 0;
	if (order == OPTBENCH_RANDOM)
		return dice % targets;
	if (dice % 10)
		return hot;
	return (hot + 1 + dice / 10 % (targets - 1)) % targets;
}

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
	return optbench_drive(run, optbench_##name, mark, &known_ret,	\
			      order, targets);				\
}

#define DEFINE_CALL(name, order, targets)				\
static noinline __noclone u64						\
optbench_##name(u64 arg, unsigned long *ret, optbench_target_fn target)	\
{									\
	return target(arg, ret) ^ OPTBENCH_CALL_MARK;			\
}									\
DEFINE_BATCH(name, OPTBENCH_CALL_MARK, order, targets)

#define DEFINE_TAIL(name, order, targets)				\
static noinline __noclone u64						\
optbench_##name(u64 arg, unsigned long *ret, optbench_target_fn target)	\
{									\
	return target(arg, ret);					\
}									\
DEFINE_BATCH(name, 0, order, targets)

DEFINE_CALL(call_1, OPTBENCH_SKEWED, 1)
DEFINE_CALL(call_2_skewed, OPTBENCH_SKEWED, 2)
DEFINE_CALL(call_2_random, OPTBENCH_RANDOM, 2)
DEFINE_CALL(call_2_phase, OPTBENCH_PHASE, 2)
DEFINE_CALL(call_4_skewed, OPTBENCH_SKEWED, 4)
DEFINE_CALL(call_4_random, OPTBENCH_RANDOM, 4)
DEFINE_CALL(call_4_phase, OPTBENCH_PHASE, 4)
DEFINE_CALL(call_16_skewed, OPTBENCH_SKEWED, 16)
DEFINE_CALL(call_16_random, OPTBENCH_RANDOM, 16)
DEFINE_CALL(call_16_phase, OPTBENCH_PHASE, 16)

DEFINE_TAIL(tail_1, OPTBENCH_SKEWED, 1)
DEFINE_TAIL(tail_2_skewed, OPTBENCH_SKEWED, 2)
DEFINE_TAIL(tail_2_random, OPTBENCH_RANDOM, 2)
DEFINE_TAIL(tail_2_phase, OPTBENCH_PHASE, 2)
DEFINE_TAIL(tail_4_skewed, OPTBENCH_SKEWED, 4)
DEFINE_TAIL(tail_4_random, OPTBENCH_RANDOM, 4)
DEFINE_TAIL(tail_4_phase, OPTBENCH_PHASE, 4)
DEFINE_TAIL(tail_16_skewed, OPTBENCH_SKEWED, 16)
DEFINE_TAIL(tail_16_random, OPTBENCH_RANDOM, 16)
DEFINE_TAIL(tail_16_phase, OPTBENCH_PHASE, 16)

const struct optbench_scenario optbench_site_scenarios[] = {
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

const unsigned int optbench_nr_site_scenarios =
	ARRAY_SIZE(optbench_site_scenarios);
