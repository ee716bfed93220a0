// SPDX-License-Identifier: GPL-2.0-or-later
/* Families: tcp4, tcp6, udp4, udp6; and what is held open on lo. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "load_net.h"
#include "optload.h"

#define MESSAGE		8192
#define TAKE_PACKETS	512

static char sent[MESSAGE];
static char got[MESSAGE];

/* A TCP pair with both ends here, and an end whose other is the partner's. */
struct tcp {
	int listener;
	int near;
	int far;
	int partner;
	union address address;
};

/* A datagram with its length, and a number that each one has of its own. */
struct datagram {
	uint32_t number;
	uint32_t size;
	char data[1400];
};

static struct tcp tcp4, tcp6;
static struct udp udp4, udp6;
static int packets = -1;
static uint64_t nr_packets;

static union address loopback(int family)
{
	union address address = { .any.sa_family = family };

	if (family == AF_INET6)
		address.v6.sin6_addr = in6addr_loopback;
	else
		address.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

int bound(int type, union address *address)
{
	const struct timeval patience = { PATIENCE_MS / 1000, 0 };
	socklen_t size = sizeof(*address);
	int fd = socket(address->any.sa_family, type, 0);

	if (!CHECK(fd >= 0) ||
	    !CHECK(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience,
			       sizeof(patience))) ||
	    !CHECK(!bind(fd, &address->any, size)) ||
	    !CHECK(!getsockname(fd, &address->any, &size)))
		return -1;
	return fd;
}

bool connect_tcp(int listener, const union address *address, int *near, int *far)
{
	const struct timeval patience = { PATIENCE_MS / 1000, 0 };
	const int on = 1;

	*near = socket(address->any.sa_family, SOCK_STREAM, 0);
	if (!CHECK(*near >= 0) ||
	    !CHECK(!connect(*near, &address->any, sizeof(*address))))
		return false;
	*far = accept(listener, NULL, NULL);
	return CHECK(*far >= 0) &&
	       CHECK(!setsockopt(*near, SOL_SOCKET, SO_RCVTIMEO, &patience,
				 sizeof(patience))) &&
	       CHECK(!setsockopt(*far, SOL_SOCKET, SO_RCVTIMEO, &patience,
				 sizeof(patience))) &&
	       CHECK(!setsockopt(*near, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))) &&
	       CHECK(!setsockopt(*far, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)));
}

static bool setup_tcp(struct tcp *tcp, int family)
{
	int theirs;

	tcp->address = loopback(family);
	tcp->listener = bound(SOCK_STREAM, &tcp->address);
	if (tcp->listener < 0 || !CHECK(!listen(tcp->listener, 8)) ||
	    !connect_tcp(tcp->listener, &tcp->address, &tcp->near, &tcp->far) ||
	    !connect_tcp(tcp->listener, &tcp->address, &tcp->partner, &theirs))
		return false;
	partner_link(theirs, theirs);
	return true;
}

void pass_bytes(int from, int to)
{
	size_t size = random_size(MESSAGE);
	uint32_t key = random32();

	fill(sent, size, key);
	CHECK(send(from, sent, size, 0) == (ssize_t)size);
	CHECK(recv(to, got, size, MSG_WAITALL) == (ssize_t)size);
	CHECK(filled(got, size, key));
}

/* A connection's whole life; the reset at its end leaves no TIME_WAIT. */
static void reconnect(const struct tcp *tcp)
{
	const struct linger reset = { .l_onoff = 1, .l_linger = 0 };
	int near = -1, far = -1;

	if (connect_tcp(tcp->listener, &tcp->address, &near, &far)) {
		pass_bytes(near, far);
		CHECK(!setsockopt(near, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)));
		CHECK(!close(near));
		near = -1;
		CHECK(recv(far, got, 1, 0) == -1 && errno == ECONNRESET);
	}
	if (near >= 0)
		close(near);
	if (far >= 0)
		CHECK(!close(far));
}

static void turn_tcp(const struct tcp *tcp)
{
	int i;

	for (i = 0; i < 4; i++) {
		pass_bytes(tcp->near, tcp->far);
		pass_bytes(tcp->far, tcp->near);
		pass_bytes(tcp->partner, tcp->partner);
	}
	if (random32() % 8 == 0)
		reconnect(tcp);
}

bool connect_udp(struct udp *udp, const union address *near, const union address *far)
{
	const int on = 1;

	return udp->near >= 0 && udp->far >= 0 &&
	       CHECK(!connect(udp->near, &far->any, sizeof(*far))) &&
	       CHECK(!connect(udp->far, &near->any, sizeof(*near))) &&
	       CHECK(!setsockopt(udp->far, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof(on)));
}

static bool setup_udp(struct udp *udp, int family)
{
	union address near = loopback(family), far = near;

	udp->near = bound(SOCK_DGRAM, &near);
	udp->far = bound(SOCK_DGRAM, &far);
	return connect_udp(udp, &near, &far);
}

/* Receives with the time of arrival, which the kernel takes for us only. */
static ssize_t recv_stamped(int fd, void *buffer, size_t size)
{
	union {
		char bytes[CMSG_SPACE(sizeof(struct timeval))];
		struct cmsghdr align;
	} control;
	struct iovec part = { buffer, size };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	ssize_t result = recvmsg(fd, &message, 0);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	CHECK(header && header->cmsg_type == SCM_TIMESTAMP);
	return result;
}

void pass_datagrams(struct udp *udp)
{
	struct datagram out, in;
	int i;

	for (i = 0; i < 8; i++) {
		size_t data = random_size(sizeof(out.data));
		ssize_t size = offsetof(struct datagram, data) + data;

		out.number = ++udp->number;
		out.size = size;
		fill(out.data, data, out.number);
		CHECK(send(udp->near, &out, size, 0) == size);
		if (i % 2)
			CHECK(recv_stamped(udp->far, &in, sizeof(in)) == size);
		else
			CHECK(recv(udp->far, &in, sizeof(in), 0) == size);
		CHECK(in.number == out.number && in.size == size);
		CHECK(filled(in.data, data, in.number));
	}
}

bool setup_tcp4(void)
{
	return setup_tcp(&tcp4, AF_INET);
}

void turn_tcp4(void)
{
	turn_tcp(&tcp4);
}

bool setup_tcp6(void)
{
	return setup_tcp(&tcp6, AF_INET6);
}

void turn_tcp6(void)
{
	turn_tcp(&tcp6);
}

bool setup_udp4(void)
{
	return setup_udp(&udp4, AF_INET);
}

void turn_udp4(void)
{
	pass_datagrams(&udp4);
}

bool setup_udp6(void)
{
	return setup_udp(&udp6, AF_INET6);
}

void turn_udp6(void)
{
	pass_datagrams(&udp6);
}

static bool loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	bool up;

	if (!CHECK(fd >= 0) || !CHECK(!ioctl(fd, SIOCGIFFLAGS, &request)))
		return false;
	up = request.ifr_flags & IFF_UP;
	request.ifr_flags |= IFF_UP;
	up = up || CHECK(!ioctl(fd, SIOCSIFFLAGS, &request));
	close(fd);
	return up;
}

/*
 * What makes the kernel rewrite its own text (static keys) happens here, once
 * and before the load: the random generator gets ready, packets get time
 * stamps, a packet receiver stands on lo.
 */
bool hold_open(void)
{
	struct sockaddr_ll lo = {
		.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
	};
	const int on = 1;
	int stamps;
	char byte;

	if (!CHECK(getrandom(&byte, 1, 0) == 1) || !loopback_up())
		return false;
	stamps = socket(AF_INET, SOCK_DGRAM, 0);
	packets = socket(AF_PACKET, SOCK_DGRAM, 0);
	lo.sll_ifindex = if_nametoindex("lo");
	return CHECK(stamps >= 0) && CHECK(packets >= 0) &&
	       CHECK(!setsockopt(stamps, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof(on))) &&
	       CHECK(!bind(packets, (struct sockaddr *)&lo, sizeof(lo)));
}

/*
 * Takes some of what is queued and checks that it is IP: new packets may come
 * faster than we read.  The kernel's own count has those too that did not fit
 * the queue.
 */
uint64_t count_packets(void)
{
	struct tpacket_stats stats = { 0 };
	socklen_t stats_size = sizeof(stats);
	unsigned char first;
	int i;

	if (packets < 0)
		return 0;
	for (i = 0; i < TAKE_PACKETS; i++) {
		ssize_t size = recv(packets, &first, 1, MSG_DONTWAIT);

		if (size < 0 && errno == EAGAIN)
			break;
		CHECK(size == 1 && (first >> 4 == 4 || first >> 4 == 6));
	}
	if (CHECK(!getsockopt(packets, SOL_PACKET, PACKET_STATISTICS, &stats,
			      &stats_size)))
		nr_packets += stats.tp_packets;
	return nr_packets;
}
