/** The signals that ask a process to end: of a terminal that hangs up, of Ctrl-C, of a service manager. */
export const END_SIGNALS = ['SIGHUP', 'SIGINT', 'SIGTERM'] as const;

export type EndSignal = (typeof END_SIGNALS)[number];

/** A signal that asks us to end, and not one that the kernel sends for a fault. */
export const isEndSignal = (signal: string | null): signal is EndSignal => END_SIGNALS.some((name) => name === signal);

/** For a child: they are sent to all of us at once, and the parent decides, and ends us with KILL. */
export function leaveSignalsToParent(): void {
  for (const signal of END_SIGNALS) process.on(signal, () => undefined);
}
