-- What a program has written, kept short. It writes to a file of its own, so that it does not need us; when that has
-- reached half of what is allowed, its end becomes the older one of two files, and it is emptied. What the program
-- writes between the two steps is lost.
--
-- Bytes have positions, which go on over the two files: `first` that of the oldest one, `cut` that of the first one of
-- the newer file. Files are read and copied on the threads of the pool, piece by piece: nobody waits for a disk.
local uv = require "luv"
local async = require "symphony.async"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"

local M = {}
M.__index = M

local PIECE = 128 * 1024
local COPY = 1 << 20        -- at once
local TRIES = 4             -- to have the end of what is being written
local LOOK_MS = 500         -- where the system tells of no changes

local function size_of(path)
  local stat = uv.fs_stat(path)
  return stat and stat.size or 0
end

-- One that is closed at the end of the block. A read that is under way then finds another file, or none, and nobody
-- hears of it.
local function open(path, flags)
  local fd, err = uv.fs_open(path, flags, tonumber("600", 8))
  if not fd then return nil, errors.new("io", err) end
  return setmetatable({ fd = fd }, { __close = function() uv.fs_close(fd) end })
end

--- The log in the folder @dir; mark tells its positions from those of an earlier one.
function M.new(dir)
  local log = setmetatable({ dir = dir, path = dir .. "/log", old = dir .. "/log.1", lock = async.mutex(),
    mark = crypto.hex(crypto.random(8)), first = 0 }, M)
  log.cut = size_of(log.old)
  return log
end

--- How many bytes the newer file has.
function M:size()
  return size_of(self.path)
end

--- The position behind what there is.
function M:stop()
  return self.cut + self:size()
end

-- At most @max bytes from @at on or, where they are gone, from the oldest one on; and where they begin: "" when they
-- cannot be read. In a task.
function M:read(at, max)
  local _ <close> = self.lock:lock()
  at = math.max(at, self.first)
  local older = at < self.cut and open(self.old, "r")
  if not older then at = math.max(at, self.cut) end -- somebody may have taken it away
  local is_old, file <close> = older and true, older or open(self.path, "r")
  if not file then return "", at end
  if is_old then max = math.min(max, self.cut - at) end
  return async.await(uv.fs_read, file.fd, max, at - (is_old and self.first or self.cut)) or "", at
end

-- Where the @count-th line break from behind in @text is; nil, how many there are.
local function break_from_behind(text, count)
  local all = select(2, text:gsub("\n", "\n"))
  if all < count then return nil, all end
  local at = 0
  for _ = 0, all - count do at = text:find("\n", at + 1, true) end
  return at
end

--- The position where the last @lines lines before @stop begin: looked for from there backwards. In a task.
function M:last(lines, stop)
  local at, left, begun = stop, lines, false
  while left > 0 and at > self.first do
    local from = math.max(self.first, at - PIECE)
    if from < self.cut and self.cut < at then from = self.cut end
    local text, really = self:read(from, at - from)
    if really ~= from or text == "" then break end -- it was cut meanwhile: all that is left
    if not begun and text:sub(-1) == "\n" then left = left + 1 end -- the end of the last line is no other line
    begun = true
    local found, count = break_from_behind(text, left)
    if found then return from + found end
    at, left = from, left - count
  end
  return left > 0 and self.first or stop
end

--- A piece of what is kept from @at on, of before @stop, cut between lines where there are any; the position behind it;
--- and how many bytes before it are gone. In a task.
function M:piece(at, stop)
  local text, really = self:read(at, math.min(PIECE, stop - at))
  if really + #text < stop then text = text:match("^.*\n") or text end
  return text, really + #text, really - at
end

--- Waits until more than up to @at is there, @ms at most. True: it is. In a task.
function M:wait(at, ms)
  local changed, deadline = async.event(), uv.now() + ms
  local watch = uv.new_fs_event()
  local _ <close> = setmetatable({}, { __close = function() if watch then watch:close() end end })
  local told = watch and watch:start(self.dir, {}, function() changed:set() end)
  while self:stop() <= at do
    local left = deadline - uv.now()
    if left <= 0 or self.closed then return false end
    changed:wait(told and left or math.min(left, LOOK_MS))
  end
  return true
end

-- Copies the file from @at on, and what comes to it meanwhile once more. The position behind that; nil, err.
local function copy(from, to, at)
  for _ = 1, 2 do
    local size = uv.fs_fstat(from.fd).size
    while at < size do
      local n, err = async.await(uv.fs_sendfile, to.fd, from.fd, at, math.min(COPY, size - at))
      if not n or n == 0 then return nil, err or errors.new("io", "the file became shorter") end
      at = at + n
    end
  end
  return at
end

--- Cuts it to about @max bytes. In a task that is not canceled meanwhile. true; nil, err: then its end is lost.
function M:trim(max)
  local size, half = self:size(), max // 2
  if size < half then return true end
  local _ <close> = self.lock:lock()
  if self.closed then return true end
  local from <close>, err = open(self.path, "r+")
  if not from then return nil, err end
  local fresh, begin, stop = self.old .. ".new", nil, nil
  for _ = 1, TRIES do
    begin, stop = math.max(0, size - half), nil
    local to <close>, why = open(fresh, "w")
    if to then stop, why = copy(from, to, begin) end
    err = why
    if not stop or stop - begin <= half then break end
    size = stop -- so much has come meanwhile that its end is enough
  end
  if stop and not uv.fs_rename(fresh, self.old) then stop, err = nil, errors.new("io", "cannot rename " .. fresh) end
  if not stop then
    uv.fs_unlink(fresh)
    uv.fs_unlink(self.old)
  end
  async.await(uv.fs_ftruncate, from.fd, 0)
  self.first = self.cut + (stop and begin or size)
  self.cut = self.cut + (stop or size)
  if not stop then return nil, err end
  return true
end

--- Its folder is about to go: nothing is written there any more when this returns. In a task.
function M:close()
  self.closed = true
  local _ <close> = self.lock:lock()
end

return M
