/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What source code can say to the optpoline gcc plugin.  It need not say
 * anything: the plugin makes a site of every indirect call by itself.  Without
 * the plugin all of this is empty.
 */
#ifndef OPTPOLINE_H
#define OPTPOLINE_H

#ifdef __has_attribute
#if __has_attribute(optpoline_key)
#define OPTPOLINE_PLUGIN	1
#endif
#endif

#ifdef OPTPOLINE_PLUGIN

/* The function's indirect and static calls stay as gcc makes them. */
#define __no_optpoline	__attribute__((optpoline_none))

/* With -fplugin-arg-optpoline-opt-in: only such a function has inline sites. */
#define __optpoline	__attribute__((optpoline))

/*
 * Of a pointer to a function, or of its typedef: bits @shift to @shift + @bits
 * - 1 of argument @argument (1 to 6) tell which function is called.  A key
 * that is wrong costs time, nothing else: the target is always checked.
 *
 *	int (*handle)(struct packet *packet, unsigned int type)
 *		OPTPOLINE_KEY(2, 4, 0);
 */
#define OPTPOLINE_KEY(argument, bits, shift) \
	__attribute__((optpoline_key(argument, bits, shift)))

#else

#define __no_optpoline
#define __optpoline
#define OPTPOLINE_KEY(argument, bits, shift)

#endif
#endif /* OPTPOLINE_H */
