/* SPDX-License-Identifier: GPL-2.0-only */
/* Which target is called next, and what it must give. */
#ifndef OPTBENCH_DRIVE_H
#define OPTBENCH_DRIVE_H

#include <linux/atomic.h>
#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/printk.h>

#include "optbench.h"

/* In the value of what is not a tail call: code behind the call has run. */
#define OPTBENCH_CALL_MARK	0x0ddba11c0ffee000ULL

enum optbench_order {
	OPTBENCH_SKEWED,	/* target 0 gets nine calls of ten */
	OPTBENCH_RANDOM,	/* all alike */
	OPTBENCH_PHASE,		/* as skewed, but the hot target changes */
};

static __always_inline u64 optbench_value(u64 arg, unsigned int id)
{
	return (arg ^ (id + 1)) * 0x9e3779b97f4a7c15ULL + id;
}

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
 * A batch for sites of any shape: @right makes one call of target @id by the
 * function @site, and tells whether all that came back is right.
 */
static __always_inline unsigned int
optbench_drive_checks(struct optbench_run *run, void *site,
		      bool (*right)(u64 arg, unsigned int id),
		      enum optbench_order order, unsigned int targets)
{
	unsigned int errors = 0;
	unsigned int i;

	for (i = 0; i < OPTBENCH_BATCH; i++) {
		unsigned int id = optbench_pick(run, order, targets);

		if (likely(right(run->seed, id)))
			continue;
		errors++;
		pr_err_ratelimited("%ps: wrong result of target %u\n", site, id);
	}
	return errors;
}

#define DEFINE_CHECKS(name, order, targets)				\
static unsigned int batch_##name(struct optbench_run *run)		\
{									\
	return optbench_drive_checks(run, OPTBENCH_SYMBOL(name),	\
				     right_##name, order, targets);	\
}

#endif /* OPTBENCH_DRIVE_H */
