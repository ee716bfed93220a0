// SPDX-License-Identifier: GPL-2.0-only
/* Inline sites through each register that gcc can be made to call through. */
#include "optseed.h"

DEFINE_TARGETS(u64, reg, optbench_value(arg, id), u64 arg);

/* The asm is where a register variable is in its register for sure. */
#define DEFINE_REG(name)						\
static noinline __noclone u64						\
optseed_reg_##name(u64 arg, u64 (*pointer)(u64 arg))			\
{									\
	register u64 (*target)(u64 arg) asm(#name) = pointer;		\
									\
	asm volatile("" : "+r"(target));				\
	return target(arg) ^ OPTBENCH_CALL_MARK;			\
}									\
									\
static __always_inline bool right_reg_##name(u64 arg, unsigned int id)	\
{									\
	return optseed_reg_##name(arg, reg_targets[id].call) ==		\
	       (optbench_value(arg, id) ^ OPTBENCH_CALL_MARK);		\
}									\
DEFINE_CHECKS(reg_##name, OPTBENCH_SKEWED, 2)

DEFINE_REG(rax)
DEFINE_REG(rcx)
DEFINE_REG(rdx)
DEFINE_REG(rbx)
DEFINE_REG(rbp)
DEFINE_REG(rsi)
DEFINE_REG(r8)
DEFINE_REG(r9)
DEFINE_REG(r10)
DEFINE_REG(r11)
DEFINE_REG(r12)
DEFINE_REG(r13)
DEFINE_REG(r14)
DEFINE_REG(r15)

/* Without an argument the first argument's register is free. */
DEFINE_TARGETS(u64, no_argument, optbench_value(0, id), void);

static noinline __noclone u64 optseed_reg_rdi(u64 (*pointer)(void))
{
	register u64 (*target)(void) asm("rdi") = pointer;

	asm volatile("" : "+r"(target));
	return target() ^ OPTBENCH_CALL_MARK;
}

static __always_inline bool right_reg_rdi(u64 arg, unsigned int id)
{
	return optseed_reg_rdi(no_argument_targets[id].call) ==
	       (optbench_value(0, id) ^ OPTBENCH_CALL_MARK);
}
DEFINE_CHECKS(reg_rdi, OPTBENCH_SKEWED, 2)

static const struct optbench_scenario scenarios[] =
	OPTBENCH_REG_SCENARIOS;

const struct optbench_table optseed_reg_table = {
	scenarios, ARRAY_SIZE(scenarios)
};
