/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What differs from one kernel to another, and what the module cannot do
 * without.
 *
 * Every condition on a kernel's version, configuration or features stands here
 * and in no other file of this folder; tests/unit/image holds that.  A feature
 * is tested by itself (a header, a macro, a CONFIG_ symbol), because
 * distributions carry changes back.  Only where nothing can be tested does a
 * version decide.  Each condition names the commit, and the release that first
 * had it.
 */
#ifndef OPTPOLINE_COMPAT_H
#define OPTPOLINE_COMPAT_H

#include <linux/version.h>
#include <asm/orc_types.h>

/* aefb2f2e619b (6.9) gave CONFIG_RETPOLINE its second name. */
#if !defined(CONFIG_RETPOLINE) && !defined(CONFIG_MITIGATION_RETPOLINE)
#error "optpoline needs CONFIG_RETPOLINE: without retpolines it has no sites"
#endif

/* 443cbaf9e2fd (6.9) took VMCOREINFO out of crash_core. */
#if !defined(CONFIG_CRASH_CORE) && !defined(CONFIG_VMCORE_INFO)
#error "optpoline needs CONFIG_CRASH_CORE or CONFIG_VMCORE_INFO (VMCOREINFO)"
#endif

#if !defined(CONFIG_X86_64) || !defined(CONFIG_SMP)
#error "optpoline needs an x86-64 SMP kernel"
#endif
#if !defined(CONFIG_KALLSYMS) || !defined(CONFIG_MODULE_UNLOAD)
#error "optpoline needs CONFIG_KALLSYMS and CONFIG_MODULE_UNLOAD"
#endif

/*
 * 481aa5fca02a (6.13) made synchronize_rcu_tasks_rude() return at once on x86:
 * its name and its CONFIG_ symbol stayed.  A block of the arena would then be
 * written while an interrupted idle task is still inside it.
 */
#if !defined(CONFIG_TASKS_RUDE_RCU)
#error "optpoline needs CONFIG_TASKS_RUDE_RCU"
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
#error "optpoline needs a synchronize_rcu_tasks_rude() that waits: Linux before 6.13"
#endif

/*
 * What struct orc_entry holds in its last two bytes where a function is
 * entered: sp_reg | bp_reg << 4 | type << 8.
 *
 * fb799447ae29 (6.4) gave the type of a call a number other than 0.
 */
#ifdef ORC_TYPE_CALL
#define OPTP_ORC_ENTERED	(ORC_REG_SP | ORC_TYPE_CALL << 8)
#else
#define OPTP_ORC_ENTERED	ORC_REG_SP
#endif

#ifndef __ASSEMBLY__

#include <linux/module.h>

/* 443cbaf9e2fd (6.9): for paddr_vmcoreinfo_note(). */
#if __has_include(<linux/vmcore_info.h>)
#include <linux/vmcore_info.h>
#else
#include <linux/crash_core.h>
#endif

/*
 * The text of a module that stays after its init.
 *
 * ac3b43283923 (6.4) put module_memory, and this macro, in the place of
 * module_layout.
 */
#ifdef for_each_mod_mem_type
static inline unsigned long optp_module_text(const struct module *mod)
{
	return (unsigned long)mod->mem[MOD_TEXT].base;
}

static inline unsigned int optp_module_text_size(const struct module *mod)
{
	return mod->mem[MOD_TEXT].size;
}
#else
static inline unsigned long optp_module_text(const struct module *mod)
{
	return (unsigned long)mod->core_layout.base;
}

static inline unsigned int optp_module_text_size(const struct module *mod)
{
	return mod->core_layout.text_size;
}
#endif

#endif /* !__ASSEMBLY__ */
#endif /* OPTPOLINE_COMPAT_H */
