/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of optpoline.ko share among themselves.
 *
 * main.c    the header, the records, load and unload
 * int3.c    the poke table and the handler of an int3 at a site
 * mailbox.c the thread that serves the host's requests
 * modules.c the list of loaded modules
 * stubs.S   the learning stubs
 * census.c  the census's counts
 * census_stubs.S  the census stubs
 * arena.S   the room for the host's code
 * compat.h  what differs from kernel to kernel
 */
#ifndef OPTPOLINE_H
#define OPTPOLINE_H

#include "optpoline_abi.h"

/* struct optp_record for stubs.S; main.c checks them. */
#define OPTP_SLOT_SIZE		8
#define OPTP_SLOT_COUNT		4
#define OPTP_RECORD_OTHER	56

/* The census's hash, for census_stubs.S; census.c checks them. */
#define OPTP_CENSUS_ORDER		2
#define OPTP_CENSUS_CHUNKS		(1 << OPTP_CENSUS_ORDER)
#define OPTP_CENSUS_SLOT_SIZE		16
#define OPTP_CENSUS_BUCKET_SHIFT	7
#define OPTP_CENSUS_HASH_RETURN		0x61c88647
#define OPTP_CENSUS_HASH_TARGET		0x2c1b3c6d

#ifdef __ASSEMBLY__

/* The header's tables, by register number. */
.macro REGISTER_TABLE name:req prefix:req
SYM_DATA_START(\name)
	.irp reg, rax, rcx, rdx, rbx
	.quad	\prefix\()\reg
	.endr
	.quad	0				/* rsp */
	.irp reg, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
	.quad	\prefix\()\reg
	.endr
SYM_DATA_END(\name)
.endm

#else /* !__ASSEMBLY__ */

#include <linux/types.h>

extern struct optp_header *const optp_header;

/* stubs.S: tables by register number. */
extern const u64 optp_thunks[OPTP_NR_REGS];
extern const u64 optp_learn_stubs[OPTP_NR_REGS];

/* census_stubs.S: a table by register number. */
extern const u64 optp_census_stubs[OPTP_NR_REGS];

/* arena.S */
extern u8 optp_arena[];
extern u8 optp_arena_end[];

int optp_int3_start(unsigned int nr_sites);
void optp_int3_stop(void);
void optp_int3_forget(u64 text, u64 size);

int optp_modules_start(unsigned int capacity);
void optp_modules_stop(void);
int optp_modules_list(void);

int optp_census_start(void);
void optp_census_stop(void);
int optp_census_clear(void);

int optp_mailbox_start(void);
void optp_mailbox_stop(void);

#endif /* !__ASSEMBLY__ */
#endif /* OPTPOLINE_H */
