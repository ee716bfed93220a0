/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What load_net.c does over lo, and load_veth.c over a pair of devices. */
#ifndef LOAD_NET_H
#define LOAD_NET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

struct udp {
	int near;
	int far;
	uint32_t number;
};

/* A socket bound to @address, which has its port then; or -1. */
int bound(int type, union address *address);
/* Connects the sockets of @udp, which are bound to @near and @far. */
bool connect_udp(struct udp *udp, const union address *near, const union address *far);
/* Connects a new socket, @near, to what @listener at @address accepts as @far. */
bool connect_tcp(int listener, const union address *address, int *near, int *far);
/* Datagrams from near to far. */
void pass_datagrams(struct udp *udp);
/* A piece of a stream. */
void pass_bytes(int from, int to);

#endif /* LOAD_NET_H */
