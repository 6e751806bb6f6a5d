/** What the log takes from others. Everything in `libraries/` is a part of its own in `dist/`, and only loaded by what needs it. */
export { createLogger, format } from 'winston';
export { default as DailyRotateFile } from 'winston-daily-rotate-file';
