// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The poke table, and what happens at an int3.
 *
 * While the host changes a site, 0xCC stands on its first byte.  A CPU that
 * executes it must do what the site has always meant: call, or jump to, the
 * thunk.  The host's order of work is
 *
 *	1. write the table's entry, ARMED	in a stop
 *	2. 0xCC on the site's first byte	in a stop, not before 1
 *	3. the site's tail, then its first byte	in stops
 *	4. the entry back to IDLE		in a stop, not before 3
 *
 * In a stop no CPU runs, so a CPU that trapped sees an entry that is whole,
 * but it may see any later step than the one that made it trap:
 *
 *	byte   entry	what it means
 *	0xCC   ARMED	ours: emulate the slow path
 *	0xCC   IDLE	a foreign breakpoint: not for us
 *	other  any	the change is over: execute the site again
 *
 * The handler reads the byte, then the state, and the host may stop the guest
 * between the two: 0xCC, steps 3 and 4, IDLE.  So the handler reads again before
 * it decides "not for us".  It is wrong only if the host makes one whole change
 * of this site between the two reads of every round.
 *
 * The host writes the 0xCC into memory behind the guest's back; a CPU may be
 * late, which is why entries outlive their use and are never taken out.
 *
 * The handler runs as an NMI does, also inside NMIs, and before anything else
 * that looks at a breakpoint.  It takes no lock, calls nothing indirectly and
 * can be neither traced nor probed.
 */
#include <linux/kdebug.h>
#include <linux/kprobes.h>
#include <linux/log2.h>
#include <linux/percpu.h>
#include <linux/vmalloc.h>
#include <asm/text-patching.h>

#include "optpoline.h"

#define OPTP_INT3_LOOKS	16

static struct optp_poke_entry *optp_poke_table;
static unsigned int optp_poke_order;

static DEFINE_PER_CPU(struct optp_cpu_stats, optp_cpu_stats);

static nokprobe_inline const struct optp_poke_entry *optp_poke_find(u64 site)
{
	const u32 mask = (1U << optp_poke_order) - 1;
	u32 place = (site * OPTP_POKE_HASH) >> (64 - optp_poke_order);
	u32 probes;

	for (probes = 0; probes <= mask; probes++) {
		const struct optp_poke_entry *entry = &optp_poke_table[place];
		u64 found = READ_ONCE(entry->site);

		if (found == site)
			return entry;
		if (!found)
			return NULL;
		place = (place + 1) & mask;
	}
	return NULL;
}

static nokprobe_inline bool optp_emulate(struct pt_regs *regs,
					 const struct optp_poke_entry *entry)
{
	enum optp_site_kind kind = READ_ONCE(entry->kind);

	switch (kind) {
	case OPTP_SITE_CALL:
	case OPTP_SITE_STATIC_CALL:
		int3_emulate_push(regs, entry->site + READ_ONCE(entry->length));
		break;
	case OPTP_SITE_JMP:
	case OPTP_SITE_COMPARE:
	case OPTP_SITE_STATIC_JMP:
		break;
	default:
		return false;
	}
	int3_emulate_jmp(regs, READ_ONCE(entry->slow_path));
	return true;
}

static notrace int optp_int3(struct notifier_block *nb, unsigned long event,
			     void *data)
{
	struct pt_regs *regs = ((struct die_args *)data)->regs;
	const struct optp_poke_entry *entry;
	unsigned long site;
	int looks;

	if (event != DIE_INT3 || user_mode(regs))
		return NOTIFY_DONE;

	site = regs->ip - INT3_INSN_SIZE;
	entry = optp_poke_find(site);
	if (!entry)
		return NOTIFY_DONE;

	for (looks = 0; looks < OPTP_INT3_LOOKS; looks++) {
		if (READ_ONCE(*(const u8 *)site) != INT3_INSN_OPCODE) {
			int3_emulate_jmp(regs, site);
			this_cpu_inc(optp_cpu_stats.int3_late);
			return NOTIFY_STOP;
		}
		if (READ_ONCE(entry->state) == OPTP_POKE_ARMED) {
			if (!optp_emulate(regs, entry))
				return NOTIFY_DONE;
			this_cpu_inc(optp_cpu_stats.int3_hits);
			return NOTIFY_STOP;
		}
	}
	return NOTIFY_DONE;
}

NOKPROBE_SYMBOL(optp_int3);

static struct notifier_block optp_int3_notifier = {
	.notifier_call = optp_int3,
	.priority = INT_MAX,
};

/**
 * optp_int3_start() - make the poke table and handle int3s
 * @nr_sites: as many sites fit with the table at most half full
 *
 * Return: 0 or -errno
 */
int optp_int3_start(unsigned int nr_sites)
{
	int err;

	optp_poke_order = order_base_2(nr_sites) + 1;
	optp_poke_table = vzalloc(sizeof(*optp_poke_table) << optp_poke_order);
	if (!optp_poke_table)
		return -ENOMEM;

	err = register_die_notifier(&optp_int3_notifier);
	if (err) {
		vfree(optp_poke_table);
		return err;
	}

	optp_header->poke_table = (unsigned long)optp_poke_table;
	optp_header->poke_order = optp_poke_order;
	optp_header->poke_entry_size = sizeof(*optp_poke_table);
	optp_header->cpu_stats = (unsigned long)&optp_cpu_stats;
	return 0;
}

/**
 * optp_int3_forget() - mark the sites GONE in code that never runs again
 * @text: where the code begins
 * @size: its bytes
 *
 * Their entries stay where they are, so that searches do not end there.  The
 * host may use an entry again for new code at the same address.
 */
void optp_int3_forget(u64 text, u64 size)
{
	u32 place;

	for (place = 0; place < 1U << optp_poke_order; place++) {
		struct optp_poke_entry *entry = &optp_poke_table[place];
		u64 site = READ_ONCE(entry->site);

		if (site >= text && site - text < size)
			WRITE_ONCE(entry->state, OPTP_POKE_GONE);
	}
}

/**
 * optp_int3_stop() - undo optp_int3_start(); no site is patched any more
 */
void optp_int3_stop(void)
{
	/* Waits for the handlers that run. */
	unregister_die_notifier(&optp_int3_notifier);
	vfree(optp_poke_table);
}
