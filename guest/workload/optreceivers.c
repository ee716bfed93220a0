// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * optreceivers: stands on lo as a packet receiver for IPv4 and IPv6, or for the
 * one that its argument names, until it is killed.
 *
 * The kernel hands a packet to each receiver but the last by deliver_skb().
 * Ours come last, being bound to the device: so IPv4's and IPv6's own receivers
 * are reached by deliver_skb() too, which they otherwise are not.  Nothing reads
 * what arrives; what does not fit is dropped.
 */
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int stand(unsigned int protocol)
{
	const struct sockaddr_ll lo = {
		.sll_family = AF_PACKET, .sll_protocol = htons(protocol),
		.sll_ifindex = if_nametoindex("lo"),
	};
	const int small = 1;
	int fd = socket(AF_PACKET, SOCK_DGRAM, 0);

	if (fd < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)) ||
	    bind(fd, (const struct sockaddr *)&lo, sizeof(lo))) {
		perror("optreceivers");
		return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *which = argc > 1 ? argv[1] : "46";

	if ((strchr(which, '4') && stand(ETH_P_IP)) ||
	    (strchr(which, '6') && stand(ETH_P_IPV6)))
		return 1;
	pause();
	return 0;
}
