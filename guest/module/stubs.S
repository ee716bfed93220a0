/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The learning stubs, one for each register that has a retpoline thunk.
 *
 * A block in the arena whose targets all missed comes here:
 *
 *	push	%SCR
 *	movabs	$record, %SCR		# percpu offset of struct optp_record
 *	jmp	optp_learn_REG
 *
 * where SCR is r11, or r10 if REG is r11.  The stub counts the call under its
 * target in this CPU's copy of the record, and goes on to the thunk with every
 * register as it was at the site.  Only the flags differ.
 *
 *	stack at entry			struct optp_record, at %gs:(%SCR)
 *	 8(%rsp)  return address	  0 target0   4 count0
 *	  (%rsp)  the site's SCR	  8 target1  12 count1
 *					  ...
 *					 48 target6  52 count6
 *					 56 other    60 hits
 *
 * 1. Compare the target's low half with each slot; count where it is found.
 * 2. Not found and the last slot is taken: they all are; count it as other.
 * 3. Else claim the first free slot by cmpxchg and count there.
 *
 * Nothing is locked and preemption may be on.  Why that is enough:
 * - Every access goes through %gs anew, and every update is one instruction,
 *   so neither an interrupt on this CPU nor a move to another one can tear or
 *   lose a count.
 * - An interrupt that claims the slot first makes our cmpxchg fail.  If it did
 *   so for the same target we count there.
 * - A task that moves to another CPU between finding a slot and counting may
 *   count in a slot that holds another target there, or claim a second slot
 *   for the same target, or leave a free slot behind.  The host adds slots up
 *   by target.  One stray count does no harm, because a learned target is a guess
 *   about speed and never about meaning.
 */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>
#include <asm/unwind_hints.h>

#include "optpoline.h"

#define TARGET(slot)	%gs:(OPTP_SLOT_SIZE * slot)
#define COUNT(slot)	%gs:(OPTP_SLOT_SIZE * slot + OPTP_SLOT_COUNT)
#define OTHER		%gs:OPTP_RECORD_OTHER
#define LAST_SLOT	(OPTP_RECORD_SLOTS - 1)

/*
 * @reg: holds the target; @target: its low half
 * @scr: holds the record
 * @new: what cmpxchg writes: the target, in a register other than eax
 */
.macro LEARN reg:req target:req scr:req new:req
SYM_CODE_START_LOCAL(optp_learn_\reg)
	UNWIND_HINT sp_reg=ORC_REG_SP sp_offset=16 type=UNWIND_HINT_TYPE_CALL

	.irp slot, 0, 1, 2, 3, 4, 5, 6
	cmpl	%\target, TARGET(\slot)(%\scr)
	je	.Lfound_\reg\()_\slot
	.endr

	cmpl	$0, TARGET(LAST_SLOT)(%\scr)
	je	.Lclaim_\reg
	incl	OTHER(%\scr)

.Lthunk_\reg:
	pop	%\scr
	UNWIND_HINT_FUNC
	JMP_NOSPEC \reg

	.irp slot, 0, 1, 2, 3, 4, 5, 6
.Lfound_\reg\()_\slot:
	UNWIND_HINT sp_reg=ORC_REG_SP sp_offset=16 type=UNWIND_HINT_TYPE_CALL
	incl	COUNT(\slot)(%\scr)
	jmp	.Lthunk_\reg
	.endr

.Lclaim_\reg:
	push	%rcx
	push	%rax
	.ifc \reg, rax
	movl	%eax, %ecx
	.endif
	.irp slot, 0, 1, 2, 3, 4, 5, 6
	xorl	%eax, %eax
	cmpxchgl %\new, TARGET(\slot)(%\scr)
	je	.Lclaimed_\reg\()_\slot
	cmpl	%eax, %\new
	je	.Lclaimed_\reg\()_\slot
	.endr
	incl	OTHER(%\scr)
	jmp	.Lrestore_\reg

	.irp slot, 0, 1, 2, 3, 4, 5, 6
.Lclaimed_\reg\()_\slot:
	incl	COUNT(\slot)(%\scr)
	jmp	.Lrestore_\reg
	.endr

.Lrestore_\reg:
	pop	%rax
	pop	%rcx
	jmp	.Lthunk_\reg
SYM_CODE_END(optp_learn_\reg)
_ASM_NOKPROBE(optp_learn_\reg)
.endm

	.text
	LEARN rax eax  r11 ecx
	LEARN rcx ecx  r11 ecx
	LEARN rdx edx  r11 edx
	LEARN rbx ebx  r11 ebx
	LEARN rbp ebp  r11 ebp
	LEARN rsi esi  r11 esi
	LEARN rdi edi  r11 edi
	LEARN r8  r8d  r11 r8d
	LEARN r9  r9d  r11 r9d
	LEARN r10 r10d r11 r10d
	LEARN r11 r11d r10 r11d
	LEARN r12 r12d r11 r12d
	LEARN r13 r13d r11 r13d
	LEARN r14 r14d r11 r14d
	LEARN r15 r15d r11 r15d

	.section .rodata
	.balign	8
	REGISTER_TABLE optp_learn_stubs optp_learn_
	REGISTER_TABLE optp_thunks __x86_indirect_thunk_
