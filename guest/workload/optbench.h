/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of optbench.ko share: a scenario is one site and the order
 * in which its targets are called.
 */
#ifndef OPTBENCH_H
#define OPTBENCH_H

/* Layout of struct optbench_regs, for the assembly. */
#define OPTBENCH_REGS_SEEN	(16 * 8)
#define OPTBENCH_REGS_AFTER	(32 * 8)
#define OPTBENCH_REGS_RET	(48 * 8)
#define OPTBENCH_REGS_ID	(49 * 8)
#define OPTBENCH_REGS_MARK	0x6f707462

#ifndef __ASSEMBLY__

#include <linux/types.h>

/* Calls of one batch: short, so that cond_resched() comes often. */
#define OPTBENCH_BATCH	16

/* One thread's state, lent to a batch. */
struct optbench_run {
	u64 seed;		/* of the pseudo-random order; never 0 */
	unsigned int phase;	/* which target is hot, modulo their number */
};

struct optbench_scenario {
	const char *name;	/* its site is the function optbench_<name> */
	const char *order;
	unsigned int targets;
	/* makes OPTBENCH_BATCH calls; returns how many went wrong */
	unsigned int (*batch)(struct optbench_run *run);
};

extern const struct optbench_scenario optbench_site_scenarios[];
extern const unsigned int optbench_nr_site_scenarios;
extern const struct optbench_scenario optbench_reg_scenarios[];
extern const unsigned int optbench_nr_reg_scenarios;

/* xorshift64 */
static inline u64 optbench_random(struct optbench_run *run)
{
	u64 x = run->seed;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	run->seed = x;
	return x;
}

/*
 * The first call of a site tells where its calls return to; each later one
 * must agree.  Nothing patches a site that was never called.
 */
static inline bool optbench_same_return(unsigned long *known, unsigned long ret)
{
	unsigned long old = READ_ONCE(*known);

	if (unlikely(!old))
		old = cmpxchg(known, 0, ret) ?: ret;
	return old == ret;
}

#endif /* !__ASSEMBLY__ */
#endif /* OPTBENCH_H */
