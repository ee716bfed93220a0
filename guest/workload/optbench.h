/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of optbench.ko share: a scenario is one site and the order
 * in which its targets are called.  optseed.ko in ../seed is made of the same
 * parts and more, with another prefix and with inline sites.
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

#include <linux/atomic.h>
#include <linux/compiler.h>
#include <linux/types.h>

#ifndef OPTBENCH_PREFIX
#define OPTBENCH_PREFIX	optbench_
#endif
#ifndef OPTBENCH_INLINE
#define OPTBENCH_INLINE	0
#endif
#define OPTBENCH_SYMBOL(name)	__PASTE(OPTBENCH_PREFIX, name)

/* Calls of one batch: short, so that cond_resched() comes often. */
#define OPTBENCH_BATCH	16

/* One thread's state, lent to a batch. */
struct optbench_run {
	u64 seed;		/* of the pseudo-random order; never 0 */
	unsigned int phase;	/* which target is hot, modulo their number */
};

struct optbench_scenario {
	const char *name;	/* its site is the function <prefix><name> */
	const char *order;
	unsigned int targets;
	/* makes OPTBENCH_BATCH calls; returns how many went wrong */
	unsigned int (*batch)(struct optbench_run *run);
};

/* One for each register that has a thunk. */
#define OPTBENCH_REG_SCENARIO(reg)	{ "reg_" #reg, "skewed", 2, batch_reg_##reg }
#define OPTBENCH_REG_SCENARIOS {			\
	OPTBENCH_REG_SCENARIO(rax),			\
	OPTBENCH_REG_SCENARIO(rcx),			\
	OPTBENCH_REG_SCENARIO(rdx),			\
	OPTBENCH_REG_SCENARIO(rbx),			\
	OPTBENCH_REG_SCENARIO(rbp),			\
	OPTBENCH_REG_SCENARIO(rsi),			\
	OPTBENCH_REG_SCENARIO(rdi),			\
	OPTBENCH_REG_SCENARIO(r8),			\
	OPTBENCH_REG_SCENARIO(r9),			\
	OPTBENCH_REG_SCENARIO(r10),			\
	OPTBENCH_REG_SCENARIO(r11),			\
	OPTBENCH_REG_SCENARIO(r12),			\
	OPTBENCH_REG_SCENARIO(r13),			\
	OPTBENCH_REG_SCENARIO(r14),			\
	OPTBENCH_REG_SCENARIO(r15),			\
}

struct optbench_table {
	const struct optbench_scenario *scenarios;
	unsigned int count;
};

/* What a module adds to optbench_main.c. */
struct optbench_parts {
	const struct optbench_table *const *tables;	/* NULL ends them */
	int (*init)(void);	/* may be NULL, as exit may */
	void (*exit)(void);
};

extern const struct optbench_parts optbench_parts;
extern const struct optbench_table optbench_site_table;
extern const struct optbench_table optbench_reg_table;

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
 * An inline site has two calls: behind the direct one stands a jmp past the
 * other.
 */
static inline bool optbench_jumps_to(unsigned long from, unsigned long to)
{
	const u8 *jmp = (const u8 *)from;

	return OPTBENCH_INLINE && to - from >= 7 && to - from <= 8 &&
	       jmp[0] == 0xeb && jmp[1] == to - from - 2;
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
	return old == ret || optbench_jumps_to(ret, old);
}

#endif /* !__ASSEMBLY__ */
#endif /* OPTBENCH_H */
