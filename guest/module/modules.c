// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The list of loaded modules, for the host.
 *
 * The head of the kernel's list is not exported, but each struct module is a
 * node of the ring, and THIS_MODULE is one of them.  From there the ring leads
 * through all others, and through the head.  The head is a bare list_head in
 * the kernel image; every struct module lies in its own module's data, in the
 * module area.  So the node outside the module area is the head, and the walk
 * steps over it.
 *
 * A module leaves the ring by list_del_rcu() and is freed after a grace period
 * of RCU: within rcu_read_lock() every node that the walk meets stays.
 *
 * Of a live module we give core_kallsyms, the symbols of what stays after init:
 * it is complete before the module is live, and it lives as long as the
 * module's text.  (mod->kallsyms may still be the table that goes with the init
 * sections.)  Of one whose init still runs we give the name alone: the host has
 * to know which module is about to load.  A module may go as soon as we have
 * listed it.  The host looks at modules_generation before and after it uses
 * the list, and checks every byte that it reads.
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/pgtable.h>
#include <linux/rculist.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "optpoline.h"

static struct optp_module *optp_modules;

static void optp_modules_add(struct optp_module *entry, const struct module *mod)
{
	const struct mod_kallsyms *kallsyms = &mod->core_kallsyms;

	memset(entry, 0, sizeof(*entry));
	strscpy(entry->name, mod->name, sizeof(entry->name));
	if (READ_ONCE(mod->state) != MODULE_STATE_LIVE)
		return;

	entry->text = optp_module_text(mod);
	entry->text_size = optp_module_text_size(mod);
	entry->symtab = (unsigned long)kallsyms->symtab;
	entry->strtab = (unsigned long)kallsyms->strtab;
	entry->nr_symbols = kallsyms->num_symtab;
}

static bool optp_is_listed(const struct module *mod)
{
	enum module_state state = READ_ONCE(mod->state);

	return state == MODULE_STATE_LIVE || state == MODULE_STATE_COMING;
}

static bool optp_is_module_node(const struct list_head *node)
{
	unsigned long address = (unsigned long)node;

	return address >= MODULES_VADDR && address < MODULES_END;
}

/**
 * optp_modules_list() - fill header.modules with the modules
 *
 * Return: 0, or -ENOSPC if there are more than fit: then the list is full and
 * lacks the rest.
 */
int optp_modules_list(void)
{
	struct list_head *const start = &THIS_MODULE->list;
	struct list_head *node = start;
	u32 count = 0;
	int err = 0;

	rcu_read_lock();
	do {
		const struct module *mod = list_entry(node, struct module, list);

		if (optp_is_module_node(node) && optp_is_listed(mod)) {
			if (count == optp_header->modules_capacity) {
				err = -ENOSPC;
				break;
			}
			optp_modules_add(&optp_modules[count++], mod);
		}
		node = rcu_dereference(list_next_rcu(node));
	} while (node != start);
	rcu_read_unlock();

	WRITE_ONCE(optp_header->modules_count, count);
	return err;
}

static int optp_modules_event(struct notifier_block *nb, unsigned long event,
			      void *data)
{
	const struct module *mod = data;

	/* Its exit has run, or its init has failed. */
	if (event == MODULE_STATE_GOING)
		optp_int3_forget(optp_module_text(mod),
				 optp_module_text_size(mod));

	/* A host that sees the new generation sees the entries marked GONE. */
	smp_wmb();
	/* COMING, LIVE or GOING, one at a time: the chain runs under a lock. */
	WRITE_ONCE(optp_header->modules_generation,
		   optp_header->modules_generation + 1);
	return NOTIFY_OK;
}

static struct notifier_block optp_modules_notifier = {
	.notifier_call = optp_modules_event,
};

/**
 * optp_modules_start() - make the list and watch modules come and go
 * @capacity: as many modules fit
 *
 * Return: 0 or -errno
 */
int optp_modules_start(unsigned int capacity)
{
	int err;

	optp_modules = vzalloc(array_size(capacity, sizeof(*optp_modules)));
	if (!optp_modules)
		return -ENOMEM;

	err = register_module_notifier(&optp_modules_notifier);
	if (err) {
		vfree(optp_modules);
		return err;
	}

	optp_header->modules = (unsigned long)optp_modules;
	optp_header->modules_capacity = capacity;
	return 0;
}

/**
 * optp_modules_stop() - undo optp_modules_start(); the mailbox has stopped
 */
void optp_modules_stop(void)
{
	unregister_module_notifier(&optp_modules_notifier);
	vfree(optp_modules);
}
