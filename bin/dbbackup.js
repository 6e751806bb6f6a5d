#!/usr/bin/env -S node --
require('../dist/main.js');
