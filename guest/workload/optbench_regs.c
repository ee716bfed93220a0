// SPDX-License-Identifier: GPL-2.0-only
/*
 * Call sites through each register, with every other register checked: what
 * the target saw is what the site loaded, and what the site gets back is
 * what the target left.
 */
#include <linux/atomic.h>
#include <linux/build_bug.h>
#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/printk.h>

#include "optbench.h"

#define OPTBENCH_RAX	0
#define OPTBENCH_RSP	4

/* Indexed by x86 register number; rsp is not used. */
struct optbench_regs {
	u64 in[16];
	u64 seen[16];
	u64 after[16];
	u64 ret;
	u64 id;
};

static_assert(offsetof(struct optbench_regs, seen) == OPTBENCH_REGS_SEEN);
static_assert(offsetof(struct optbench_regs, after) == OPTBENCH_REGS_AFTER);
static_assert(offsetof(struct optbench_regs, ret) == OPTBENCH_REGS_RET);
static_assert(offsetof(struct optbench_regs, id) == OPTBENCH_REGS_ID);

asmlinkage void optbench_reg_target_0(void);
asmlinkage void optbench_reg_target_1(void);

static bool optbench_regs_right(const struct optbench_regs *regs, u64 id)
{
	unsigned int i;

	for (i = 0; i < 16; i++) {
		u64 after = regs->in[i];

		if (i == OPTBENCH_RSP)
			continue;
		if (i == OPTBENCH_RAX)
			after = OPTBENCH_REGS_MARK + id;
		if (regs->seen[i] != regs->in[i] || regs->after[i] != after)
			return false;
	}
	return regs->id == id;
}

static __always_inline unsigned int
optbench_drive_reg(struct optbench_run *run, unsigned int reg,
		   void (*site)(struct optbench_regs *regs),
		   unsigned long *known_ret)
{
	struct optbench_regs regs;
	unsigned int errors = 0;
	unsigned int i, j;

	for (i = 0; i < OPTBENCH_BATCH; i++) {
		u64 id = !(optbench_random(run) % 10);

		for (j = 0; j < 16; j++)
			regs.in[j] = optbench_random(run);
		regs.in[reg] = (u64)(id ? optbench_reg_target_1 :
					  optbench_reg_target_0);
		site(&regs);
		if (likely(optbench_regs_right(&regs, id) &&
			   optbench_same_return(known_ret, regs.ret)))
			continue;
		errors++;
		pr_err_ratelimited("%ps: registers not kept in the call of target %llu\n",
				   site, id);
	}
	return errors;
}

#define DEFINE_REG(reg, number)						\
asmlinkage void optbench_reg_##reg(struct optbench_regs *regs);	\
static unsigned int batch_reg_##reg(struct optbench_run *run)		\
{									\
	static unsigned long known_ret;					\
									\
	return optbench_drive_reg(run, number, optbench_reg_##reg,	\
				  &known_ret);				\
}

DEFINE_REG(rax, 0)
DEFINE_REG(rcx, 1)
DEFINE_REG(rdx, 2)
DEFINE_REG(rbx, 3)
DEFINE_REG(rbp, 5)
DEFINE_REG(rsi, 6)
DEFINE_REG(rdi, 7)
DEFINE_REG(r8, 8)
DEFINE_REG(r9, 9)
DEFINE_REG(r10, 10)
DEFINE_REG(r11, 11)
DEFINE_REG(r12, 12)
DEFINE_REG(r13, 13)
DEFINE_REG(r14, 14)
DEFINE_REG(r15, 15)

static const struct optbench_scenario optbench_reg_scenarios[] =
	OPTBENCH_REG_SCENARIOS;

const struct optbench_table optbench_reg_table = {
	optbench_reg_scenarios, ARRAY_SIZE(optbench_reg_scenarios)
};
