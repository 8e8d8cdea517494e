#!/usr/bin/env bash
# A real Slurm on this machine's loopback, for tests; Debian or Ubuntu, as root.
#
#   cluster.sh install          packages
#   cluster.sh up | down        start all daemons and wait for idle nodes; stop all that it started (both may be repeated)
#   cluster.sh status
#   cluster.sh stop | start DAEMON    one of: munged mariadbd slurmdbd slurmctld cpu1 cpu2 gpu1
#   cluster.sh crash NODE       a power cut: the node's slurmd and all that runs on it are killed
#
# Partition cpu (default): nodes cpu1, cpu2. Partition gpu: node gpu1 with one GPU, behind which there is nothing. Partition
# urgent: gpu1 too, and its jobs preempt those of gpu. Accounting is on. It touches no Slurm that somebody else has configured.
set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

HOME_DIR=/var/tmp/plateloom-slurm
ETC=/etc/slurm
SIGNATURE="# made by tests/slurm/cluster.sh of Plateloom"
NODES=(cpu1 cpu2 gpu1)
MUNGED=$HOME_DIR/munge/munged.pid
DATABASE=$HOME_DIR/mysql/server.pid

fail() { echo "cluster.sh: $*" >&2; exit 1; }

until_true() { # SECONDS COMMAND…
    local limit=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] || fail "gave up waiting for: $*; logs lie in $HOME_DIR/log"
        sleep 0.2
    done
}

pid_file() {
    case $1 in
        munged) echo "$MUNGED" ;;
        mariadbd) echo "$DATABASE" ;;
        slurmctld | slurmdbd) echo "$HOME_DIR/control/$1.pid" ;;
        *) echo "$HOME_DIR/nodes/$1.pid" ;;
    esac
}

process_of() { # the daemon's process, if it is what the pid file says; a stranger with that number is none
    local file pid program=$1
    file=$(pid_file "$1")
    case $1 in cpu* | gpu*) program=slurmd ;; esac
    [ -s "$file" ] && pid=$(cat "$file") && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$program" ] && echo "$pid"
}

refuse_foreign() {
    for name in slurm gres cgroup slurmdbd; do
        if [ -e $ETC/$name.conf ] && ! head -1 $ETC/$name.conf | grep -qF "$SIGNATURE"; then
            fail "$ETC/$name.conf is not mine; a cluster that somebody else has set up stays as it is"
        fi
    done
}

install_packages() {
    refuse_foreign
    command -v apt-get >/dev/null || fail "no apt-get here"
    local missing=()
    for package in slurm-wlm slurmdbd munge mariadb-server; do
        dpkg-query -W -f '${Status}' $package 2>/dev/null | grep -q "ok installed" || missing+=($package)
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    apt-get update -qq
    local policy=/usr/sbin/policy-rc.d own=
    if [ ! -e $policy ]; then # the packages are not to start daemons of their own
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        own=yes
    fi
    local code=0
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || code=$?
    [ -z "$own" ] || rm -f $policy
    return $code
}

write_config() {
    refuse_foreign
    [ -x /usr/sbin/slurmctld ] || fail "no slurmctld; first: $0 install"
    local memory host track=linuxproc task=none gather=linux kill="JobAcctGatherParams=OverMemoryKill"
    memory=$(awk '/^MemTotal/ { print int($2 / 2048) }' /proc/meminfo)
    host=$(hostname -s)
    if mkdir /sys/fs/cgroup/memory/plateloom-probe 2>/dev/null; then # cgroup v1; else Slurm itself looks at memory
        rmdir /sys/fs/cgroup/memory/plateloom-probe
        track=cgroup task=cgroup gather=cgroup kill=
    fi
    mkdir -p $ETC $HOME_DIR/{log,nodes,gpu}
    install -d -o slurm -g slurm $HOME_DIR/control
    install -d -o munge -g munge -m 755 $HOME_DIR/munge /run/munge
    install -d -o munge -g munge -m 700 /etc/munge
    install -d -o mysql -g mysql $HOME_DIR/mysql
    if [ ! -s /etc/munge/munge.key ]; then
        (umask 077 && head -c 256 /dev/urandom >/etc/munge/munge.key)
        chown munge:munge /etc/munge/munge.key
    fi
    [ -c $HOME_DIR/gpu/gpu0 ] || mknod -m 666 $HOME_DIR/gpu/gpu0 c 1 3 # Slurm counts devices, and this is /dev/null
    cat >$ETC/slurm.conf <<CONF
$SIGNATURE
ClusterName=plateloom
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=$HOME_DIR/control
SlurmctldPidFile=$HOME_DIR/control/slurmctld.pid
SlurmctldLogFile=$HOME_DIR/control/slurmctld.log
SlurmdPidFile=$HOME_DIR/nodes/%n.pid
SlurmdSpoolDir=$HOME_DIR/nodes/%n
SlurmdLogFile=$HOME_DIR/log/%n.log
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
KillWait=2
MinJobAge=60
MpiDefault=none
ProctrackType=proctrack/$track
TaskPlugin=task/$task
JobAcctGatherType=jobacct_gather/$gather
JobAcctGatherFrequency=task=1
$kill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=26819
AccountingStorageTRES=gres/gpu
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=$memory
NodeName=cpu[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[27001-27002]
NodeName=gpu1 NodeHostname=$host NodeAddr=127.0.0.1 Port=27003 Gres=gpu:1
PartitionName=DEFAULT DefaultTime=10 MaxTime=1-0 State=UP
PartitionName=cpu Nodes=cpu[1-2] Default=YES
PartitionName=gpu Nodes=gpu1
PartitionName=urgent Nodes=gpu1 PriorityTier=10 PreemptMode=OFF
CONF
    printf '%s\nNodeName=gpu1 Name=gpu File=%s\n' "$SIGNATURE" $HOME_DIR/gpu/gpu0 >$ETC/gres.conf
    printf '%s\nCgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainRAMSpace=yes\n' "$SIGNATURE" >$ETC/cgroup.conf
    (umask 077 && cat >$ETC/slurmdbd.conf) <<CONF
$SIGNATURE
AuthType=auth/munge
SlurmUser=slurm
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=26819
LogFile=$HOME_DIR/control/slurmdbd.log
PidFile=$HOME_DIR/control/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=23306
StorageUser=slurm
StoragePass=loopback
StorageLoc=slurm
CONF
    chown slurm:slurm $ETC/slurmdbd.conf
}

sql() { mariadb --no-defaults --socket=$HOME_DIR/mysql/socket -e "$1"; }

start_daemon() {
    [ -z "$(process_of "$1" || true)" ] || return 0
    case $1 in
        munged)
            ! munge -n >/dev/null 2>&1 || return 0 # the machine's own
            setsid setpriv --reuid=munge --regid=munge --init-groups munged --force --num-threads=2 \
                --pid-file="$MUNGED" --log-file=$HOME_DIR/munge/log --seed-file=$HOME_DIR/munge/seed
            until_true 300 munge -n
            ;;
        mariadbd)
            [ -d $HOME_DIR/mysql/data ] || mariadb-install-db --no-defaults --user=mysql --datadir=$HOME_DIR/mysql/data \
                --auth-root-authentication-method=socket --skip-test-db >$HOME_DIR/log/database.log 2>&1
            setsid mariadbd --no-defaults --user=mysql --datadir=$HOME_DIR/mysql/data --socket=$HOME_DIR/mysql/socket \
                --pid-file="$DATABASE" --bind-address=127.0.0.1 --port=23306 --innodb-buffer-pool-size=32M \
                --innodb-lock-wait-timeout=900 --performance-schema=OFF >>$HOME_DIR/log/database.log 2>&1 </dev/null &
            until_true 300 sql "select 1"
            sql "create database if not exists slurm; grant all on slurm.* to 'slurm'@'localhost' identified by 'loopback'; grant all on slurm.* to 'slurm'@'127.0.0.1' identified by 'loopback'"
            ;;
        slurmdbd)
            setsid slurmdbd </dev/null >>$HOME_DIR/log/slurmdbd.out 2>&1
            until_true 300 sacctmgr -n list cluster
            ;;
        slurmctld)
            setsid slurmctld </dev/null >>$HOME_DIR/log/slurmctld.out 2>&1
            until_true 300 bash -c "scontrol ping | grep -q UP"
            ;;
        cpu1 | cpu2 | gpu1) setsid slurmd -N "$1" </dev/null >>"$HOME_DIR/log/$1.out" 2>&1 ;;
        *) fail "no daemon $1" ;;
    esac
}

stop_daemon() {
    local pid
    pid=$(process_of "$1") || return 0
    kill "$pid"
    for _ in $(seq 100); do
        [ -d "/proc/$pid" ] || break
        sleep 0.1
    done
    [ ! -d "/proc/$pid" ] || kill -9 "$pid"
    rm -f "$(pid_file "$1")"
}

crash() { # slurmd outlived by its jobs would be no power cut
    local pid group=/sys/fs/cgroup/freezer/slurm_$1
    pid=$(process_of "$1") || fail "$1 does not run"
    kill -9 "$pid"
    rm -f "$(pid_file "$1")"
    if [ -d "$group" ]; then
        find "$group" -name cgroup.procs -exec cat {} + | sort -u | xargs -r kill -9 2>/dev/null || true
    fi
}

idle() { [ "$(sinfo -h -N -o %T | sort -u)" = idle ]; }

wait_for_nodes() {
    for _ in 1 2 3 4 5 6; do
        for _ in $(seq 20); do
            ! idle || return 0
            sleep 0.2
        done
        for node in "${NODES[@]}"; do scontrol update nodename="$node" state=resume 2>/dev/null || true; done
    done
    sinfo -N -l >&2
    fail "nodes are not idle; logs lie in $HOME_DIR/log"
}

up() {
    write_config
    for daemon in munged mariadbd slurmdbd; do start_daemon $daemon; done
    if [ -z "$(sacctmgr -n list cluster plateloom)" ]; then
        sacctmgr -i -Q add cluster plateloom >/dev/null
        sacctmgr -i -Q add account screens Description=tests Organization=plateloom >/dev/null
        sacctmgr -i -Q add user "$(id -un)" Account=screens AdminLevel=Admin >/dev/null
    fi
    start_daemon slurmctld
    for node in "${NODES[@]}"; do start_daemon "$node"; done
    wait_for_nodes
}

down() {
    if [ -n "$(process_of slurmctld || true)" ]; then
        squeue -h -o %A | sort -u | xargs -r scancel --signal=KILL --full 2>/dev/null || true
        squeue -h -o %A | sort -u | xargs -r scancel 2>/dev/null || true
        for _ in $(seq 50); do
            [ -n "$(squeue -h)" ] || break
            sleep 0.2
        done
    fi
    for node in "${NODES[@]}"; do stop_daemon "$node" & done
    wait
    for daemon in slurmctld slurmdbd mariadbd munged; do stop_daemon $daemon; done
}

[ "$(id -u)" = 0 ] || fail "only root can do this"
case ${1:-} in
    install) install_packages ;;
    up) up ;;
    down) down ;;
    start) start_daemon "${2:?DAEMON}" ;;
    stop) stop_daemon "${2:?DAEMON}" ;;
    crash) crash "${2:?NODE}" ;;
    status)
        for daemon in munged mariadbd slurmdbd slurmctld "${NODES[@]}"; do
            printf '%-10s %s\n' "$daemon" "$(process_of "$daemon" || echo down)"
        done
        ;;
    *) fail "usage: $0 install | up | down | status | start DAEMON | stop DAEMON | crash NODE" ;;
esac
