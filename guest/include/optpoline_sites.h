/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the gcc plugin writes into an object and the host daemon reads: the
 * section .optpoline_sites, read-only data that stays in memory.
 *
 * Every object file with a record in it has one run: a header, then as many
 * records as its count says.  Linked together, runs follow each other without
 * a gap.  At each header the object defines the local symbol
 * __optpoline_sites, so that the daemon finds all of them by their name.
 *
 * Integers are little endian.  An address is the address of its own field plus
 * the field's value.
 *
 * The code of an inline site, which the daemon checks before it believes a
 * record:
 *
 *	call form			tail form
 *	cmp	$-1, %reg	7	cmp	$-1, %reg	7
 *	jne	slow		2	jne	slow		2
 *	call	thunk		5	jmp	thunk		5
 *	jmp	done		2    slow:
 *   slow:				jmp	thunk		5 or 6
 *	call	thunk		5 or 6
 *   done:
 *
 * The cmp always has an imm32 and starts a word of eight bytes, so that it can
 * be changed by one write.  No pointer to a function equals -1.  What gcc emits
 * by itself is the branch at "slow": from r8 on it has a cs prefix under
 * -mindirect-branch-cs-prefix.
 *
 * daemon/optpolined/kernel/sites/declarations.py mirrors this file.  Change both, and the
 * version.
 */
#ifndef OPTPOLINE_SITES_H
#define OPTPOLINE_SITES_H

#include <linux/types.h>

#define OPTP_SITES_SECTION	".optpoline_sites"
#define OPTP_SITES_SYMBOL	"__optpoline_sites"
#define OPTP_SITES_MAGIC	0x5354504f	/* "OPTS" */
#define OPTP_SITES_VERSION	1
#define OPTP_SITES_NO_REG	0xff

#define OPTP_TRAMP_PREFIX	"__optp_tramp_"

struct optp_sites_header {
	__u32 magic;
	__u16 version;
	__u16 record_size;
	__u32 count;		/* records that follow */
	__u32 reserved;		/* 0 */
};

enum optp_sites_kind {
	OPTP_SITES_INLINE_CALL = 1,	/* site: the cmp of the call form */
	OPTP_SITES_INLINE_JMP = 2,	/* site: the cmp of the tail form */
	OPTP_SITES_STATIC_CALL = 3,	/* site: a call; other: the trampoline */
	OPTP_SITES_STATIC_JMP = 4,	/* site: a jmp; other: the trampoline */
	OPTP_SITES_TRAMPOLINE = 5,	/* site: a trampoline, 8 bytes */
};

/*
 * @reg and @key_reg are x86 register numbers, 0 for rax to 15 for r15, or
 * OPTP_SITES_NO_REG.  Where @key_reg names one, it holds the call's key, a
 * number of @key_bits bits (1 to 6) from bit @key_shift on.
 */
struct optp_sites_record {
	__s32 site;
	__s32 other;		/* as site; 0: the record has none */
	__u8 kind;		/* enum optp_sites_kind */
	__u8 reg;		/* holds the target at an inline site */
	__u8 key_reg;
	__u8 key_shift;
	__u8 key_bits;
	__u8 pad[3];		/* 0 */
};

#endif /* OPTPOLINE_SITES_H */
