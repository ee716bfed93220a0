/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One call site for each register that a thunk exists for.
 *
 * optbench_reg_<reg>(struct optbench_regs *regs) loads every register but
 * rsp from regs->in, calls the thunk, and stores every register into
 * regs->after.  The target stores what it saw into regs->seen.  It gets regs
 * from the stack, right above its return address, since all registers are
 * under test.
 */
#include <linux/linkage.h>
#include <asm/nospec-branch.h>

#include "optbench.h"

/* All but rsp, and but rdi, which holds the struct. */
.macro EACH_REG op base
	\op	%rax, (\base + 0 * 8)(%rdi)
	\op	%rcx, (\base + 1 * 8)(%rdi)
	\op	%rdx, (\base + 2 * 8)(%rdi)
	\op	%rbx, (\base + 3 * 8)(%rdi)
	\op	%rbp, (\base + 5 * 8)(%rdi)
	\op	%rsi, (\base + 6 * 8)(%rdi)
	\op	%r8,  (\base + 8 * 8)(%rdi)
	\op	%r9,  (\base + 9 * 8)(%rdi)
	\op	%r10, (\base + 10 * 8)(%rdi)
	\op	%r11, (\base + 11 * 8)(%rdi)
	\op	%r12, (\base + 12 * 8)(%rdi)
	\op	%r13, (\base + 13 * 8)(%rdi)
	\op	%r14, (\base + 14 * 8)(%rdi)
	\op	%r15, (\base + 15 * 8)(%rdi)
.endm

.macro STORE reg place:vararg
	movq	\reg, \place
.endm

.macro LOAD reg place:vararg
	movq	\place, \reg
.endm

.macro REG_SITE reg
SYM_FUNC_START(optbench_reg_\reg)
	pushq	%rbp
	pushq	%rbx
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	pushq	%rdi
	EACH_REG LOAD 0
	movq	(7 * 8)(%rdi), %rdi
	CALL_NOSPEC \reg
	pushq	%rdi
	movq	8(%rsp), %rdi
	EACH_REG STORE OPTBENCH_REGS_AFTER
	popq	%rax
	movq	%rax, (OPTBENCH_REGS_AFTER + 7 * 8)(%rdi)
	popq	%rdi
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbx
	popq	%rbp
	RET
SYM_FUNC_END(optbench_reg_\reg)
.endm

.macro REG_TARGET id
SYM_FUNC_START(optbench_reg_target_\id)
	pushq	%rdi
	movq	16(%rsp), %rdi
	EACH_REG STORE OPTBENCH_REGS_SEEN
	popq	%rax
	movq	%rax, (OPTBENCH_REGS_SEEN + 7 * 8)(%rdi)
	movq	(%rsp), %rax
	movq	%rax, OPTBENCH_REGS_RET(%rdi)
	movq	$\id, OPTBENCH_REGS_ID(%rdi)
	movq	(OPTBENCH_REGS_SEEN + 7 * 8)(%rdi), %rdi
	movq	$(OPTBENCH_REGS_MARK + \id), %rax
	RET
SYM_FUNC_END(optbench_reg_target_\id)
.endm

	.text

.irp id, 0, 1
	REG_TARGET \id
.endr

.irp reg, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
	REG_SITE \reg
.endr
