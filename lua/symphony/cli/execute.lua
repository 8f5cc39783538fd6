--- One command line from argv to exit status, the same in the daemon and in the client.
local async = require "symphony.async"
local commands = require "symphony.cli.commands"
local errors = require "symphony.errors"
local parser = require "symphony.cli.parser"
local render = require "symphony.cli.render"

local M = {}

local function pause()
  async.sleep(0)
end

local function run(parsed, ctx)
  local ms = parsed.timeout and parsed.timeout * 1000
  local data, how = async.with_timeout(ms, parsed.spec.run, ctx)
  if data == nil and how ~= nil then
    error(errors.from(how), 0)
  end
  return ctx.printed and "" or render.result(data, how, ctx), how and how.note
end

--- Runs @argv and returns its exit status. @ctx has out(text), err(text), width, color, color_err and whatever the
--- commands of this side use; args, json, path and pause() (lets others have a turn) are added to it; a command that
--- has printed its own result sets ctx.printed. Must be in a task. @internal(err) is told of a bug.
function M.command(argv, ctx, internal)
  local found = commands.scan(argv)
  ctx.json = found.json
  local parsed, err = parser.parse(argv)
  local overview = parsed and not parsed.version and not found.words[1]
  if overview then
    ctx.out(parser.overview(ctx.own and ctx.own()))
    return 0
  elseif parsed and parsed.help then
    ctx.out(parsed.help)
    return 0
  elseif parsed and not parsed.spec then
    ctx.out(("symphony %s\n"):format(require("sym.sys").version))
    return 0
  elseif parsed then
    ctx.args, ctx.path, ctx.pause = parsed.args, parsed.path, pause
    local ok, text, note = xpcall(run, errors.handler, parsed, ctx)
    if ok then
      if text ~= "" then
        ctx.out(text)
      end
      if note then
        ctx.err(note)
      end
      return ctx.status or 0
    end
    err = text
  end
  if err.code == "internal" then
    err = internal(err, parsed and parsed.path[1])
  end
  ctx.err(render.error(err, ctx))
  return errors.exit_code(err)
end

return M
