#!/bin/sh
# load GROUP: loads the kernel modules of a group that are not loaded yet, in the order they are listed.
for module in $(cat "/modules/$1.list"); do
    grep -q "^${module%.ko} " /proc/modules || insmod "/modules/$module"
done
