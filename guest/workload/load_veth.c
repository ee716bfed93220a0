// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Family: veth.  A pair of devices, each end in a network namespace of its
 * own, so that what is sent to the other end goes through the driver.  The
 * sockets keep the namespaces alive, which end with the worker.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "load_net.h"
#include "optload.h"

#define NEAR_NAME	"near"
#define FAR_NAME	"far"
#define NEAR_ADDRESS	"10.77.0.1"
#define FAR_ADDRESS	"10.77.0.2"
#define NETMASK		"255.255.255.0"
/* IEEE's first one for experiments. */
#define FRAME_TYPE	0x88b5
#define FRAME		1400

/* One end's sockets. */
struct end {
	int stream;
	int frames;
	int device;
};

static struct end near, far;
static struct udp datagrams;

struct request {
	struct nlmsghdr header;
	struct ifinfomsg link;
	char attributes[256];
};

static void *tail(struct request *request)
{
	return (char *)request + NLMSG_ALIGN(request->header.nlmsg_len);
}

/* Appends an attribute, whose payload may grow until it is closed. */
static struct rtattr *open_attribute(struct request *request, int type,
				     const void *data, size_t size)
{
	struct rtattr *attribute = tail(request);

	attribute->rta_type = type;
	attribute->rta_len = RTA_LENGTH(size);
	memcpy(RTA_DATA(attribute), data, size);
	request->header.nlmsg_len = NLMSG_ALIGN(request->header.nlmsg_len) +
				    RTA_SPACE(size);
	return attribute;
}

static void close_attribute(struct request *request, struct rtattr *attribute)
{
	attribute->rta_len = (char *)tail(request) - (char *)attribute;
}

static bool ask_kernel(const struct request *request)
{
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
	} answer;
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	bool done;

	if (!CHECK(fd >= 0))
		return false;
	done = CHECK(send(fd, request, request->header.nlmsg_len, 0) ==
		     (ssize_t)request->header.nlmsg_len) &&
	       CHECK(recv(fd, &answer, sizeof(answer), MSG_TRUNC) >=
		     (ssize_t)sizeof(answer)) &&
	       CHECK(answer.header.nlmsg_type == NLMSG_ERROR) &&
	       CHECK(answer.error.error == 0);
	close(fd);
	return done;
}

/* Makes the pair: one end here, the other one in the namespace @there. */
static bool make_pair(int there)
{
	const struct ifinfomsg any = { 0 };
	struct request request = {
		.header = {
			.nlmsg_len = NLMSG_LENGTH(sizeof(request.link)),
			.nlmsg_type = RTM_NEWLINK,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE |
				       NLM_F_EXCL,
		},
	};
	struct rtattr *info, *data, *peer;

	open_attribute(&request, IFLA_IFNAME, NEAR_NAME, sizeof(NEAR_NAME));
	info = open_attribute(&request, IFLA_LINKINFO, NULL, 0);
	open_attribute(&request, IFLA_INFO_KIND, "veth", 4);
	data = open_attribute(&request, IFLA_INFO_DATA, NULL, 0);
	peer = open_attribute(&request, VETH_INFO_PEER, &any, sizeof(any));
	open_attribute(&request, IFLA_IFNAME, FAR_NAME, sizeof(FAR_NAME));
	open_attribute(&request, IFLA_NET_NS_FD, &there, sizeof(there));
	close_attribute(&request, peer);
	close_attribute(&request, data);
	close_attribute(&request, info);
	return ask_kernel(&request);
}

static union address ipv4(const char *text)
{
	union address address = { .v4.sin_family = AF_INET };

	CHECK(inet_pton(AF_INET, text, &address.v4.sin_addr) == 1);
	return address;
}

static bool set_feature(int fd, struct ifreq *request, uint32_t command, bool on)
{
	struct ethtool_value value = { .cmd = command, .data = on };

	request->ifr_data = (void *)&value;
	return CHECK(!ioctl(fd, SIOCETHTOOL, request));
}

static bool set_up(const char *name, const char *address)
{
	struct ifreq request = { 0 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	bool up;

	if (!CHECK(fd >= 0))
		return false;
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	request.ifr_addr = ipv4(address).any;
	up = CHECK(!ioctl(fd, SIOCSIFADDR, &request));
	request.ifr_netmask = ipv4(NETMASK).any;
	up = up && CHECK(!ioctl(fd, SIOCSIFNETMASK, &request)) &&
	     CHECK(!ioctl(fd, SIOCGIFFLAGS, &request));
	request.ifr_flags |= IFF_UP;
	up = up && CHECK(!ioctl(fd, SIOCSIFFLAGS, &request));
	/* With GRO there, and no TSO here, what is sent goes through the other end's NAPI. */
	up = up && set_feature(fd, &request, ETHTOOL_SGRO, true) &&
	     set_feature(fd, &request, ETHTOOL_STSO, false);
	close(fd);
	return up;
}

static bool open_frames(struct end *end, const char *name)
{
	const struct timeval patience = { PATIENCE_MS / 1000, 0 };
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(FRAME_TYPE),
		.sll_ifindex = if_nametoindex(name),
	};

	end->device = address.sll_ifindex;
	end->frames = socket(AF_PACKET, SOCK_DGRAM, 0);
	return CHECK(end->frames >= 0) &&
	       CHECK(!setsockopt(end->frames, SOL_SOCKET, SO_RCVTIMEO, &patience,
				 sizeof(patience))) &&
	       CHECK(!bind(end->frames, (struct sockaddr *)&address, sizeof(address)));
}

static int new_namespace(void)
{
	if (!CHECK(!unshare(CLONE_NEWNET)))
		return -1;
	return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

/* Ends in the near namespace. */
static bool open_both(void)
{
	union address here = ipv4(NEAR_ADDRESS), peer = ipv4(FAR_ADDRESS);
	union address server = here;
	int there = new_namespace();
	int back = new_namespace();
	int listener;
	bool opened;

	if (!CHECK(there >= 0) || !CHECK(back >= 0) || !make_pair(there) ||
	    !set_up(NEAR_NAME, NEAR_ADDRESS) || !open_frames(&near, NEAR_NAME))
		return false;
	datagrams.near = bound(SOCK_DGRAM, &here);
	listener = bound(SOCK_STREAM, &server);
	opened = listener >= 0 && CHECK(!listen(listener, 1)) &&
		 CHECK(!setns(there, CLONE_NEWNET)) &&
		 set_up(FAR_NAME, FAR_ADDRESS) && open_frames(&far, FAR_NAME);
	if (opened) {
		datagrams.far = bound(SOCK_DGRAM, &peer);
		opened = connect_udp(&datagrams, &here, &peer) &&
			 connect_tcp(listener, &server, &far.stream, &near.stream);
	}
	close(listener);
	close(there);
	close(back);
	return opened;
}

bool setup_veth(void)
{
	int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	bool opened = CHECK(home >= 0) && open_both();

	opened = CHECK(!setns(home, CLONE_NEWNET)) && opened;
	close(home);
	return opened;
}

static void pass_frame(const struct end *from, const struct end *to)
{
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(FRAME_TYPE),
		.sll_ifindex = from->device,
		.sll_halen = 6,
		.sll_addr = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
	};
	char sent[FRAME], got[FRAME];
	size_t size = random_size(FRAME);
	uint32_t key = random32();

	fill(sent, size, key);
	CHECK(sendto(from->frames, sent, size, 0, (struct sockaddr *)&address,
		     sizeof(address)) == (ssize_t)size);
	CHECK(recv(to->frames, got, sizeof(got), 0) == (ssize_t)size);
	CHECK(filled(got, size, key));
}

void turn_veth(void)
{
	int i;

	pass_datagrams(&datagrams);
	for (i = 0; i < 4; i++) {
		pass_bytes(near.stream, far.stream);
		pass_bytes(far.stream, near.stream);
		pass_frame(&near, &far);
		pass_frame(&far, &near);
	}
}
