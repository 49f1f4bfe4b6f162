#!/bin/sh
# off: everything to the disks, then the power off.
sync
umount -a -r 2>/dev/null
poweroff -f
