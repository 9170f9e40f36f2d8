#!/usr/bin/env bash
# A study of six runs by `study run --slurm`, on a SLURM of one node that this script sets up on this machine, as root,
# from Debian's packages. One run is preempted (scontrol requeue) and goes on from its checkpoint.
#
#   apt-get install slurm-wlm munge
#   PYTHON=.venv/bin/python benchmarks/slurm_on_loopback.sh FOLDER
#
# FOLDER must not be there; it gets the study, and the daemons' files. The daemons end with the script.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
mkdir "$1"
folder=$(realpath "$1")
export SLURM_CONF=$folder/slurm.conf

# ---- one node, two tasks at a time; no cgroups, no accounting ----
node=$(hostname -s)
cat > "$SLURM_CONF" <<END
ClusterName=loopback
SlurmctldHost=$node(127.0.0.1)
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
KillWait=60
MpiDefault=none
SlurmctldPort=46817
SlurmdPort=46818
StateSaveLocation=$folder/ctld
SlurmdSpoolDir=$folder/slurmd
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc)
PartitionName=all Nodes=$node Default=YES MaxTime=60 State=UP
END
mkdir "$folder/ctld" "$folder/slurmd"
mkdir -p /run/munge
chown munge: /run/munge
runuser -u munge -- munged --foreground --socket /run/munge/munge.socket.2 --force > "$folder/munged.log" 2>&1 &
daemons=$!
stop() {
    # shellcheck disable=SC2086
    kill $daemons 2> /dev/null || true
    wait
}
trap stop EXIT
slurmctld -D > "$folder/out.log" 2>&1 &
daemons="$daemons $!"
slurmd -D >> "$folder/out.log" 2>&1 &
daemons="$daemons $!"
until sinfo --noheader --format %T 2> /dev/null | grep -q idle; do sleep 1; done

# ---- six runs: a teacher, a ceiling, four students ----
cat > "$folder/six.yaml" <<'END'
base: {dataset: w2s/digits, img_size: 8, batch_size: 16, epochs: 40, lr: 0.05, warmup_epochs: 0, workers: 0, val_interval: 40,
       train_slice: "0:192", weak_fraction: 64, teacher_targets: cached, device: cpu}
weak: [{name: a, flags: {model: w2s_cnn2}}]
strong: [{name: s, flags: {model: w2s_cnn5}}]
losses: [hard, kd, bkd, adaptconf]
END
study() { "$PYTHON" -m w2s_plugins.study "$@"; }
study run "$folder/six.yaml" --output "$folder/six" --slurm --slurm-options timeout_min=30 cpus_per_task=1

# ---- the ceiling is preempted once it has begun ----
log=$(compgen -G "$folder/six/runs/ceiling-*/metrics.jsonl" || true)
until [[ -n $log && $(wc -l < "$log") -gt 10 ]]; do
    sleep 0.2
    log=$(compgen -G "$folder/six/runs/ceiling-*/metrics.jsonl" || true)
done
job=$(squeue --noheader --states RUNNING --format %i | grep "_1$")
scontrol requeue "$job"
echo "requeued task $job"
scontrol show job "$job" | grep -o "JobState=[A-Z]* \|Restarts=[0-9]*" | paste -sd " "

# a task that was requeued is held back for two minutes; nobody waits for it here
while squeue --noheader | grep -q .; do
    if squeue --noheader --jobs "$job" --states PENDING 2> /dev/null | grep -q BeginTime; then
        scontrol update "JobId=$job" StartTime=now
    fi
    sleep 2
done
study status "$folder/six"
grep -h "Resumed" "$folder"/six/state/ceiling-*.log
[[ $(compgen -G "$folder/six/runs/*/result.json" | wc -l) == 6 ]]
