/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Static calls: a call whose target the daemon sets, by the key's name.
 *
 *	OPTPOLINE_STATIC_CALL_DECLARE(my_key, my_func);		in a header
 *	OPTPOLINE_STATIC_CALL_DEFINE(my_key, my_func);		in one file
 *	ret = optpoline_static_call(my_key)(a, b);
 *
 * A key is a function of eight bytes, the trampoline, that jumps to the target;
 * a static call is a call of it.  Code built with the plugin logs its calls, and
 * the daemon makes each of them a direct call to the target.  The others, those
 * in __init code, in __no_optpoline functions and in code built without the
 * plugin, go through the trampoline.
 *
 * A key without a target does nothing and returns nothing: it is for functions
 * that return void.  It is the daemon's nop.
 */
#ifndef OPTPOLINE_STATIC_CALL_H
#define OPTPOLINE_STATIC_CALL_H

#include "optpoline.h"

#ifdef OPTPOLINE_PLUGIN
#define __optp_static_call	__attribute__((optpoline_static_call))
#define __optp_trampoline	__attribute__((optpoline_trampoline))
#else
#define __optp_static_call
#define __optp_trampoline
#endif

/* A ret that the kernel may turn into its return thunk, and the way back. */
#if defined(CONFIG_RETHUNK) || defined(CONFIG_MITIGATION_RETHUNK)
#define __OPTP_RETURN	__OPTP_JMP("__x86_return_thunk")
#else
#define __OPTP_RETURN	"ret; int3; int3; int3; int3"
#endif

#define __OPTP_JMP(func)	".byte 0xe9; .long " func " - (. + 4)"

/* One aligned word, so that one write changes the target. */
#define __OPTP_TRAMPOLINE(key, code)					\
	asm(".pushsection .text.unlikely.optpoline, \"ax\", @progbits\n" \
	    ".balign 8\n"						\
	    ".globl __optp_tramp_" #key "\n"				\
	    ".type __optp_tramp_" #key ", @function\n"			\
	    "__optp_tramp_" #key ":\n"					\
	    code "\n"							\
	    "int3; int3; int3\n"					\
	    ".size __optp_tramp_" #key ", . - __optp_tramp_" #key "\n"	\
	    ".popsection")

/* @func: a function, or a type of functions such as int(int). */
#define OPTPOLINE_STATIC_CALL_DECLARE(key, func)			\
	extern __typeof__(func) __optp_tramp_##key __optp_static_call

/* The pointer keeps @func and its name, and checks that its type is the key's. */
#define OPTPOLINE_STATIC_CALL_DEFINE(key, func)				\
	OPTPOLINE_STATIC_CALL_DECLARE(key, func) __optp_trampoline;	\
	static __typeof__(func) *const __optp_initial_##key		\
		__attribute__((used, section(".discard.optpoline"))) = func; \
	__OPTP_TRAMPOLINE(key, __OPTP_JMP(#func))

/* @func: as for OPTPOLINE_STATIC_CALL_DECLARE; it returns void. */
#define OPTPOLINE_STATIC_CALL_DEFINE_NULL(key, func)			\
	OPTPOLINE_STATIC_CALL_DECLARE(key, func) __optp_trampoline;	\
	__OPTP_TRAMPOLINE(key, __OPTP_RETURN)

#define optpoline_static_call(key)	__optp_tramp_##key

#endif /* OPTPOLINE_STATIC_CALL_H */
