/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The census stubs, one for each register that has a retpoline thunk.
 *
 * During a census the first instruction of each thunk is a jmp to its stub, so
 * every indirect call of the kernel passes here.  The stub counts the call in a
 * hash of this CPU and makes it by a retpoline of its own, because the thunk
 * would lead back here.  Every register and every flag is as it was.
 *
 *	stack at entry		struct optp_census_slot, at %gs:(%rsi)
 *	  (%rsp)  return	 0 key: return address << 32 | target, low halves
 *		  address	 8 count
 *
 * The hash has OPTP_CENSUS_CHUNKS chunks of 256 buckets of 8 slots.  One 32-bit
 * sum, of both halves times a constant each, gives the bucket: of its highest
 * bits the low 8 are the bucket's number in a chunk, those above the chunk's.
 * (One 64-bit product of the key puts all targets of a site in one bucket.)
 *
 * 1. Compare the key with each slot of the bucket; count where it is found.
 * 2. Not found and the last slot is taken: count it as other.
 * 3. Else claim the first free slot by cmpxchg and count there.
 *
 * Nothing is locked and preemption may be on.  What stubs.S says of its records
 * holds here too: each access goes through %gs anew, each update is one
 * instruction, and one stray count does no harm.
 */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>
#include <asm/unwind_hints.h>

#include "optpoline.h"

#define KEY(slot)	%gs:(OPTP_CENSUS_SLOT_SIZE * slot)(%rsi)
#define COUNT(slot)	%gs:(OPTP_CENSUS_SLOT_SIZE * slot + 8)(%rsi)

/* Where the pushes below leave %rax and the return address. */
#define SAVED_RAX	24
#define RETURN_ADDRESS	32

/*
 * @reg: holds the target; @target: its low half
 *
 * The flags wait in %eax (lahf, seto) until sahf; addb sets the overflow flag
 * from %al again, and sahf the others.
 */
.macro CENSUS reg:req target:req
	.balign	64
SYM_CODE_START_LOCAL(optp_census_\reg)
	UNWIND_HINT_FUNC

	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	lahf
	seto	%al

	/* %rdx: the key; %rsi: the bucket */
	.ifc \reg, rax
	movl	SAVED_RAX(%rsp), %ecx
	.else
	movl	%\target, %ecx
	.endif
	movl	RETURN_ADDRESS(%rsp), %edx
	imull	$OPTP_CENSUS_HASH_RETURN, %edx, %esi
	shlq	$32, %rdx
	orq	%rcx, %rdx
	imull	$OPTP_CENSUS_HASH_TARGET, %ecx, %ecx
	addl	%esi, %ecx
	shrl	$(32 - 8 - OPTP_CENSUS_ORDER), %ecx
	movzbl	%cl, %esi
	shll	$OPTP_CENSUS_BUCKET_SHIFT, %esi
	shrl	$8, %ecx
	addq	optp_census_chunks(, %rcx, 8), %rsi

	.irp slot, 0, 1, 2, 3, 4, 5, 6, 7
	cmpq	%rdx, KEY(\slot)
	je	.Lcount_\reg\()_\slot
	.endr

	cmpq	$0, KEY(7)
	je	.Lcensus_claim_\reg
	incq	PER_CPU_VAR(optp_census_other)

.Lcensus_go_\reg:
	popq	%rsi
	popq	%rdx
	popq	%rcx
	addb	$127, %al
	sahf
	popq	%rax

	ANNOTATE_INTRA_FUNCTION_CALL
	call	.Lcensus_retpoline_\reg
	int3
.Lcensus_retpoline_\reg:
	movq	%\reg, (%rsp)
	UNWIND_HINT_FUNC
	RET

	.irp slot, 0, 1, 2, 3, 4, 5, 6, 7
.Lcount_\reg\()_\slot:
	incq	COUNT(\slot)
	jmp	.Lcensus_go_\reg
	.endr

.Lcensus_claim_\reg:
	movl	%eax, %ecx
	.irp slot, 0, 1, 2, 3, 4, 5, 6, 7
	xorl	%eax, %eax
	cmpxchgq %rdx, KEY(\slot)
	je	.Lclaimed_slot_\reg\()_\slot
	cmpq	%rax, %rdx
	je	.Lclaimed_slot_\reg\()_\slot
	.endr
	incq	PER_CPU_VAR(optp_census_other)
	movl	%ecx, %eax
	jmp	.Lcensus_go_\reg

	.irp slot, 0, 1, 2, 3, 4, 5, 6, 7
.Lclaimed_slot_\reg\()_\slot:
	incq	COUNT(\slot)
	movl	%ecx, %eax
	jmp	.Lcensus_go_\reg
	.endr
SYM_CODE_END(optp_census_\reg)
_ASM_NOKPROBE(optp_census_\reg)
.endm

	.text
	CENSUS rax eax
	CENSUS rcx ecx
	CENSUS rdx edx
	CENSUS rbx ebx
	CENSUS rbp ebp
	CENSUS rsi esi
	CENSUS rdi edi
	CENSUS r8  r8d
	CENSUS r9  r9d
	CENSUS r10 r10d
	CENSUS r11 r11d
	CENSUS r12 r12d
	CENSUS r13 r13d
	CENSUS r14 r14d
	CENSUS r15 r15d

	.section .rodata
	.balign	8
	REGISTER_TABLE optp_census_stubs optp_census_
