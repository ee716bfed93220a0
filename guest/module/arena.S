/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The arena: executable memory that the host fills with blocks.
 *
 * It is part of the module's text, so the kernel maps it read-only and
 * executable, within reach of a rel32 from all kernel and module text.  The
 * guest never writes it.  It takes no room in the .ko.
 *
 * A block is entered as its site's thunk would be: the return address is on
 * top of the stack.  One ORC entry says so for the whole arena, which lets the
 * kernel unwind from any block.  It is wrong while a block has pushed its
 * scratch register, which is for two instructions: a trace that starts just
 * there is marked unreliable.
 */
#include <linux/linkage.h>
#include <asm/page_types.h>

#include "compat.h"

#if OPTP_ARENA_MIB < 1 || OPTP_ARENA_MIB > 64
#error "ARENA_MIB must be 1 to 64"
#endif

	.section .optpoline.arena, "ax", @nobits
	.balign	PAGE_SIZE
SYM_START(optp_arena, SYM_L_GLOBAL, SYM_A_NONE)
	.skip	OPTP_ARENA_MIB << 20
SYM_END(optp_arena, SYM_T_NONE)
SYM_INNER_LABEL(optp_arena_end, SYM_L_GLOBAL)

	.section .orc_unwind_ip, "a"
	.long	optp_arena - .
	.long	optp_arena_end - .

	/* struct orc_entry: sp_offset, bp_offset, and what compat.h says */
	.section .orc_unwind, "a"
	.short	8, 0, OPTP_ORC_ENTERED
	.short	0, 0, ORC_REG_UNDEFINED
