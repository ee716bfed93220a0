/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of optpoline.ko share among themselves.
 *
 * main.c    the header, the records, load and unload
 * int3.c    the poke table and the handler of an int3 at a site
 * mailbox.c the thread that serves the host's requests
 * modules.c the list of loaded modules
 * stubs.S   the learning stubs
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

#ifndef __ASSEMBLY__

#include <linux/types.h>

extern struct optp_header *const optp_header;

/* stubs.S: tables by register number. */
extern const u64 optp_thunks[OPTP_NR_REGS];
extern const u64 optp_learn_stubs[OPTP_NR_REGS];

/* arena.S */
extern u8 optp_arena[];
extern u8 optp_arena_end[];

int optp_int3_start(unsigned int nr_sites);
void optp_int3_stop(void);
void optp_int3_forget(u64 text, u64 size);

int optp_modules_start(unsigned int capacity);
void optp_modules_stop(void);
int optp_modules_list(void);

int optp_mailbox_start(void);
void optp_mailbox_stop(void);

#endif /* !__ASSEMBLY__ */
#endif /* OPTPOLINE_H */
